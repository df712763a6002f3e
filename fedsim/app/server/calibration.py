"""`fedsim calibrate`: finds the setting that makes a run's guarantee an epsilon."""

from fedsim.app.budget.delta import delta_of
from fedsim.app.budget.spending import public_over_time
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.place import data_dir
from fedsim.app.server.check_experiment import check_config, check_experiment
from fedsim.config import Config, Dp, to_flat
from fedsim.errors import WrongInput
from fedsim.privacy.planning import FOR, calibrate, guaranteed


def reaching(config: Config, epsilon: float, what: str = "noise") -> Config:
    """Return the config whose guarantee is at most `epsilon`.

    Raises WrongInput if there is none, and for everything that a run would refuse.
    """
    if config.dp.unit == "none":
        raise WrongInput(
            'dp.unit = "none" promises nothing; set dp.unit = "example" or "device" to calibrate'
        )
    begun = with_noise(config) if what == "noise" else config
    check_config(begun)
    holdings = load_holdings(config, data_dir(config.place, {}))
    check_experiment(begun, holdings)
    delta = delta_of(config, holdings.dataset).value
    found = calibrate(config, epsilon, what, delta, public_over_time(config, holdings))
    check_config(found)
    return found


def with_noise(config: Config) -> Config:
    """Return the config with some noise if it has none; calibration then finds how much."""
    if config.dp.noise_multiplier:
        return config
    noise = {"noise_multiplier": Dp().noise_multiplier}
    return config.model_copy(update={"dp": config.dp.model_copy(update=noise)})


def calibrated(config: Config, epsilon: float, what: str) -> list[str]:
    """Return lines that tell which setting gives a guarantee of at most `epsilon`."""
    found = reaching(config, epsilon, what)
    holdings = load_holdings(config, data_dir(config.place, {}))
    delta = delta_of(config, holdings.dataset)
    guarantee, rests_on = guaranteed(found, delta.value, public_over_time(config, holdings))
    key = FOR[what]
    value = to_flat(found)[key]
    return [
        f"{key} = {value:.5g}" if isinstance(value, float) else f"{key} = {value}",
        f"promised epsilon at most {guarantee:.4f} at delta {delta.value:g} ({delta.rule}); "
        f"rests on {rests_on}.",
        f"Run it with: --set {key}={value!r}",
    ]
