"""The planned privacy cost of a run, told before it trains."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedsim.app.budget.delta import delta_of
from fedsim.app.budget.spending import public_over_time
from fedsim.config import Config
from fedsim.data.activity import tenths
from fedsim.data.holdings import Holdings
from fedsim.privacy.claims import amplification, relation
from fedsim.privacy.planning import Plan, guaranteed, make_plan
from fedsim.seeds import generator
from fedsim.types import View
from strategies.inclusion import inclusion
from strategies.selection import rule_of, select
from strategies.weights import weights_of_all


def privacy_sentences(config: Config, holdings: Holdings, view: View) -> list[str]:
    """Return sentences on the most a run can cost, its plan by activity, and the reasons.

    `view` is what selection sees in the first round.
    """
    dp = config.dp
    if dp.unit == "none":
        return ["No differential privacy: nothing bounds what the model reveals."]
    delta = delta_of(config, holdings.dataset)
    plan, activity = planned(config, holdings, view, delta.value)
    target = (
        f" The run stops or retires devices at epsilon {dp.target_epsilon:g}."
        if dp.target_epsilon
        else ""
    )
    claim = amplification(config)
    members = plan.planned[activity > 0]
    members = members if len(members) else np.zeros(1)
    return [
        f"Privacy of one {dp.unit} ({relation(config)}, trust {dp.trust}): promised epsilon at "
        f"most {plan.guarantee:.3f} at delta {delta.value:g}; this promise rests on "
        f"{plan.rests_on}.{target}",
        f"Delta: {delta.rule}.",
        f"Amplification by sampling {'claimed' if claim.claimed else 'not claimed'}: "
        f"{claim.reason}.",
        f"Planned epsilon (expected participation, by Renyi): median {np.median(members):.3f}, "
        f"95th percentile {np.quantile(members, 0.95):.3f}; by decile of public activity (and "
        "95th percentile): " + ", ".join(planned_deciles(plan, activity)),
    ]


def planned(
    config: Config, holdings: Holdings, view: View, delta: float
) -> tuple[Plan, NDArray[np.int64]]:
    """Return the plan by the first round's inclusion, and the first period's public activity."""
    activity = view.activity
    if config.availability.rule == "clock":  # one hour's reach says little of the others
        view = replace(view, reachable=np.ones(len(view.devices), dtype=bool))
    chances = _inclusion(view, config)
    public = weights_of_all(view, chances, config)
    over_time = public_over_time(config, holdings)
    guarantee, rests_on = guaranteed(config, delta, over_time)
    plan = make_plan(config, delta, activity, chances, public)
    return Plan(delta, guarantee, rests_on, plan.planned), activity


def planned_deciles(plan: Plan, activity: NDArray[np.int64]) -> list[str]:
    """Return median and 95th percentile of the planned epsilon for each decile of activity.

    The least active decile comes first.
    """
    found = [plan.planned[part] for part in tenths(activity)]
    return [f"{np.median(each):.2f} ({np.quantile(each, 0.95):.2f})" for each in found]


def _inclusion(view: View, config: Config) -> NDArray[np.float64]:
    """Return each device's chance in the first round.

    If a rule states no chance, the result is a device's share of 20 draws.
    """
    if rule_of(config.selection).independent and config.selection.sampling == "poisson":
        return inclusion(view, config.selection)
    seen = np.zeros(len(view.devices))
    draws = 20
    for draw in range(draws):
        cohort = select(view, config.selection, generator(config.seed, "plan", draw))
        seen[np.searchsorted(view.devices, cohort.devices)] += 1 / draws
    return seen
