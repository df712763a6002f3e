"""The inclusion probability that a privacy target leaves room for."""

from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.privacy.accounting import epsilon_rdp
from fedsim.privacy.claims import amplification, target_delta
from fedsim.privacy.mechanism import device_mechanism

LEAST = 1e-6
STEPS = 24


def inclusion_within_target(config: Config, devices: int) -> float:
    """Return the largest inclusion probability that keeps a device within `dp.target_epsilon`.

    The device has the largest weight and can be selected in every round of the run. `devices` is
    the number of devices with examples, which sets delta. Renyi accounting makes the result a
    little less than what is possible. Raises WrongInput where sampling gives no privacy, or where
    no probability is small enough.
    """
    target = config.dp.target_epsilon
    claim = amplification(config)
    if config.dp.unit != "device" or not target:
        raise WrongInput(
            f"selection.rule = {config.selection.rule!r} caps inclusion by a target; set dp.unit = "
            '"device" and dp.target_epsilon'
        )
    if not claim.claimed:
        raise WrongInput(
            f"selection.rule = {config.selection.rule!r} rests on amplification by sampling, "
            f"which cannot be claimed: {claim.reason}; change that, or choose another rule"
        )
    mechanism = device_mechanism(config)
    delta = target_delta(config, devices)[0]

    def spent(chance: float) -> float:
        return epsilon_rdp(
            [mechanism.event(chance, mechanism.max_weight, config.train.rounds)], delta
        )

    if spent(1.0) <= target:
        return 1.0
    if spent(LEAST) > target:
        raise WrongInput(
            f"dp.target_epsilon = {target:g} leaves no room for any inclusion probability over "
            f"{LEAST:g}; raise dp.noise_multiplier, or lower train.rounds"
        )
    good = LEAST
    bad = 1.0
    for _ in range(STEPS):
        middle = (good * bad) ** 0.5
        good, bad = (middle, bad) if spent(middle) <= target else (good, middle)
    return good


def privacy_cap(config: Config, devices: int) -> float | None:
    """Return the cap of `selection.rule = "privacy_aware"`; None for rules that have none."""
    return (
        inclusion_within_target(config, devices)
        if config.selection.rule == "privacy_aware"
        else None
    )
