"""What a config may claim: relation, amplification, delta; and what it must not ask for."""

import math
from dataclasses import dataclass

from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.privacy.dp_checks import (
    check_example_sum,
    check_examples,
    check_norms,
    check_release,
    check_unit,
)
from strategies.aggregation import averages
from strategies.aggregation import rule_of as server_rule_of
from strategies.selection import rule_of


@dataclass(frozen=True)
class Claim:
    """Whether amplification by sampling is claimed, and the sentence that says why or why not."""

    claimed: bool
    reason: str


def relation(config: Config) -> str:
    """Return the neighbouring relation under which the mechanism's promise holds.

    Inclusion that is normalised over the real roster changes with a device. So device-level DP with
    add-or-remove needs `selection.total_score`. Zero-out keeps the roster as it is.
    """
    dp = config.dp
    if dp.relation != "auto":
        return dp.relation
    if dp.trust == "secure_sum" or (dp.unit == "device" and not _is_normalised(config)):
        return "zero_out"
    return "add_or_remove"


def amplification(config: Config) -> Claim:
    """Return whether a release's event may have a rate below 1, with the reason."""
    dp = config.dp
    selection = config.selection
    if dp.amplification == "none":
        return Claim(False, 'dp.amplification = "none"')
    if dp.unit == "example":
        return _example_amplification(config)
    if dp.trust == "secure_sum":
        return Claim(False, "the server draws the cohort and is not trusted under a secure sum")
    if dp.correlation == "banded":
        return Claim(
            False, "correlated noise needs none: participation is limited by the selector instead"
        )
    if config.aggregation.min_updates:
        return Claim(
            False, "aggregation.min_updates lets those who answer decide whether there is a release"
        )
    if dp.min_separation > 1 or dp.max_participations:
        return Claim(False, "limits on participation make a round's coins depend on earlier ones")
    if not rule_of(selection).independent:
        return Claim(
            False, f"selection.rule = {selection.rule!r} does not state independent inclusion coins"
        )
    if selection.sampling != "poisson":
        return Claim(
            False, "a cohort of fixed size has no independent coins, so no accountant covers it"
        )
    return Claim(
        True,
        "each device is included by a secret coin of its own, of a public probability, with a "
        "constant divisor; cohorts and the selection seed must stay with the trusted server",
    )


def _example_amplification(config: Config) -> Claim:
    if config.dp.trust == "secure_sum" and config.train.local_steps != 1:
        return Claim(False, "several local steps per secure sum are not covered")
    return Claim(
        True,
        "each example is in a local step by a secret coin on its device (Poisson batches); which "
        "devices take part is taken as visible, and realised steps are composed",
    )


def target_delta(config: Config, units: int) -> tuple[float, str]:
    """Return delta and the rule that it follows."""
    if config.dp.delta:
        rule = "set by name"
        if config.dp.delta >= 1 / units:
            rule += (
                f"; WARNING: at least 1/{units}, so that it allows a unit's data to be published "
                "whole"
            )
        return config.dp.delta, rule
    power = -math.ceil(math.log10(10 * units) - 1e-12)
    return float(f"1e{power}"), f"1/(10 x {units} protected units), rounded down to a power of ten"


def check_dp(config: Config) -> None:
    """Refuse what cannot be promised, each in one sentence. Raises WrongInput."""
    dp = config.dp
    if dp.unit == "none":
        return
    if dp.noise_multiplier == 0:
        raise WrongInput(
            "dp.noise_multiplier = 0 hides nothing at any epsilon; raise it (fedsim calibrate "
            'finds one), or set dp.unit = "none"'
        )
    if rule_of(config.selection).reads_losses:
        raise WrongInput(
            f"selection.rule = {config.selection.rule!r} looks at protected data, which no "
            'epsilon here covers; choose one that sees public activity only, or dp.unit = "none"'
        )
    if dp.trust != "central" and config.evaluation.on != "central":
        raise WrongInput(
            f"evaluation.on = {config.evaluation.on!r} sends unnoised scores to a server that "
            f'dp.trust = {dp.trust!r} does not trust; set evaluation.on = "central"'
        )
    if dp.unit == "example" and dp.correlation == "banded":
        raise WrongInput(
            'dp.correlation = "banded" is for dp.unit = "device"; set dp.correlation = "none"'
        )
    check_unit(dp)
    _check_sum(config)
    if dp.unit == "device":
        check_release(config)
        _check_device(config)
    else:
        check_examples(config)
    claim = amplification(config)
    if dp.amplification == "claim" and not claim.claimed:
        raise WrongInput(
            f'dp.amplification = "claim" cannot be had: {claim.reason}; set dp.amplification = '
            '"auto" to run without that claim'
        )


def _is_normalised(config: Config) -> bool:
    """Whether a device's inclusion does not depend on the other devices."""
    if config.aggregation.weights == "inverse_probability":
        return False  # weights are shares of everybody's activity
    return config.selection.total_score > 0 and rule_of(config.selection).own_score


def _check_sum(config: Config) -> None:
    dp = config.dp
    rule = config.aggregation.rule
    if dp.trust == "secure_sum" and not server_rule_of(config.aggregation).of_sum:
        raise WrongInput(
            f"aggregation.rule = {rule!r} needs single updates, and a secure sum shows none; "
            f'choose one of {", ".join(averages())}, or dp.trust = "central"'
        )
    if dp.trust == "secure_sum":
        check_norms(config)
    if dp.unit == "example" and dp.trust == "secure_sum":
        check_example_sum(config)


def _check_device(config: Config) -> None:
    dp = config.dp
    rule = config.aggregation.rule
    if dp.trust == "local":
        raise WrongInput(
            'dp.trust = "local" protects examples; for whole devices choose dp.trust = "central" '
            'or "secure_sum", or dp.unit = "example"'
        )
    if not server_rule_of(config.aggregation).of_sum:
        raise WrongInput(
            f"aggregation.rule = {rule!r} is no sum, so a device's influence has no known bound; "
            f"choose one of {', '.join(averages())}"
        )
    if dp.clipping not in ("flat", "adaptive"):
        raise WrongInput(
            f"dp.clipping = {dp.clipping!r} bounds examples, so device-level noise has no clip to "
            'go by; choose "flat" or "adaptive"'
        )
    if dp.relation == "add_or_remove" and (dp.trust == "secure_sum" or not _is_normalised(config)):
        raise WrongInput(
            'dp.relation = "add_or_remove" does not hold where inclusion is normalised over the '
            "real roster or devices answer a secure sum; set selection.total_score with dp.trust "
            '= "central" and rule "uniform" or "activity", or dp.relation = "zero_out"'
        )
    if config.availability.rule == "clock":
        raise WrongInput(
            'availability.rule = "clock" lets a device\'s own records decide when it can be '
            'selected, which device-level DP does not cover; choose "always" or "day_cycle"'
        )
    if dp.trust == "secure_sum" and dp.clipping == "adaptive":
        raise WrongInput(
            'dp.clipping = "adaptive" needs a noisy count of devices at a trusted server; under a '
            'secure sum set dp.clipping = "flat"'
        )
    if dp.correlation == "banded" and (dp.trust != "central" or dp.clipping == "adaptive"):
        raise WrongInput(
            'dp.correlation = "banded" needs dp.trust = "central" and a fixed clip; set '
            'dp.clipping = "flat" and dp.trust = "central"'
        )
