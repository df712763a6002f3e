"""Settings that would break a promise of differential privacy, each refused in one sentence."""

from fedsim.config import Config, Dp, Train
from fedsim.errors import WrongInput

OF_THE_OTHER = {
    "device": ("method", "noise_decay", "noise_layout", "sampling_rate", "micro_batches"),
    "example": ("max_weight", "quantile", "count_noise", "clip_lr"),
}
"""Keys of [dp] that have no effect for a unit, so that setting one is refused."""


def check_unit(dp: Dp) -> None:
    """Refuse settings that belong to the other unit of privacy. Raises WrongInput."""
    default = Dp()
    mine = OF_THE_OTHER[dp.unit]
    strange = [
        f"dp.{key} = {getattr(dp, key)!r}"
        for key in mine
        if getattr(dp, key) != getattr(default, key)
    ]
    if strange:
        other = "example" if dp.unit == "device" else "device"
        raise WrongInput(
            f"{' and '.join(strange)} {'belongs' if len(strange) == 1 else 'belong'} to dp.unit = "
            f'"{other}" and would do nothing for "{dp.unit}"; leave that out, or set dp.unit = '
            f'"{other}"'
        )


def check_norms(config: Config) -> None:
    """Refuse to look at single norms where only sums may be seen. Raises WrongInput."""
    if config.dp.trust == "secure_sum" and config.aggregation.max_norm:
        raise WrongInput(
            f"aggregation.max_norm = {config.aggregation.max_norm:g} needs each device's norm, "
            "and a secure sum shows no device's norm nor who was left out for it; set "
            "aggregation.max_norm = 0"
        )


def check_example_sum(config: Config) -> None:
    """Refuse what example-level noise shares cannot hide. Raises WrongInput.

    A device's weight over its divisor must be one constant for all. Its update must be that
    constant times its clipped sum and share. Then shares add up to the noise of the sum's one
    gradient step.
    """
    dp = config.dp
    train = config.train
    if train.local_steps != 1:
        raise WrongInput(
            "example-level DP through secure sums covers ONE local step a sum, got "
            f"train.local_steps = {train.local_steps}; set train.local_steps = 1, or dp.trust = "
            '"local"'
        )
    if not dp.sampling_rate:
        raise WrongInput(
            "example-level DP through secure sums needs one rate for all devices; set "
            "dp.sampling_rate"
        )
    if config.aggregation.weights not in ("auto", "examples"):
        raise WrongInput(
            "example-level DP through secure sums weighs every example alike, got "
            f'aggregation.weights = {config.aggregation.weights!r}; set "examples"'
        )
    if dp.method == "edp":
        raise WrongInput(
            'dp.method = "edp" divides by the slots of a device, so that the noise shares do not '
            'hide an example of a device that weighs much; set dp.method = "exact", or dp.trust = '
            '"local"'
        )
    _check_linear(train)


def _check_linear(train: Train) -> None:
    if train.optimizer != "sgd" or train.weight_decay or train.proximal:
        raise WrongInput(
            "example-level DP through secure sums adds up gradients and shares, and "
            f"train.optimizer = {train.optimizer!r} with weight_decay = {train.weight_decay:g} "
            f"and proximal = {train.proximal:g} would have each device rescale its own by itself; "
            'use "sgd" with neither, and a server rule as fedadam'
        )


def check_examples(config: Config) -> None:
    """Refuse what reaches further than one example's own gradient. Raises WrongInput."""
    if config.data.activity_public == "exact":
        raise WrongInput(
            'data.activity_public = "exact" lets rate, divisor and steps follow the exact number '
            'of examples, which one example changes; set data.activity_public = "power2"'
        )
    if config.stream.mode == "continual" and config.stream.memory == "reservoir":
        raise WrongInput(
            'stream.memory = "reservoir" keeps so many examples that one more pushes another one '
            'out, which moves a sum by twice the clip; choose "all", "current", "window" or "age"'
        )


def check_release(config: Config) -> None:
    """Refuse a release that depends on how many devices answered. Raises WrongInput."""
    if config.aggregation.min_updates:
        raise WrongInput(
            f"aggregation.min_updates = {config.aggregation.min_updates} ends a round without a "
            "release where one device decides it by its answer, which no noise hides; set it to 0 "
            'for dp.unit = "device"'
        )
