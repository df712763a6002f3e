"""What a run will cost in privacy, told before it trains; and the setting that reaches a target."""

import numpy as np
from numpy.typing import NDArray

from fedsim.app.budget.spending import protected_units, public_over_time
from fedsim.app.experiment.checks import check_training
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.place import data_dir
from fedsim.config import Config, to_flat
from fedsim.data.activity import public_activity
from fedsim.data.availability import Clock
from fedsim.data.holdings import Holdings
from fedsim.errors import WrongInput
from fedsim.models import build_model
from fedsim.privacy.claims import amplification, check_dp, relation, target_delta
from fedsim.privacy.inclusion_cap import privacy_cap
from fedsim.privacy.planning import FOR, Plan, calibrate, guaranteed, make_plan
from fedsim.seeds import generator
from fedsim.types import View
from strategies.inclusion import inclusion
from strategies.selection import rule_of, select
from strategies.weights import weights_of_all

DECILES = 10


def privacy_sentences(config: Config, holdings: Holdings) -> list[str]:
    """Return what the run will cost at most, what is planned by activity, and what that rests on."""
    dp = config.dp
    if dp.unit == "none":
        return ["No differential privacy: nothing bounds what the model reveals."]
    delta, rule = target_delta(config, protected_units(config, holdings.dataset))
    plan, activity = planned(config, holdings, delta)
    target = (
        f" The run stops or retires devices at epsilon {dp.target_epsilon:g}." if dp.target_epsilon else ""
    )
    claim = amplification(config)
    members = plan.planned[activity > 0]
    members = members if len(members) else np.zeros(1)
    return [
        f"Privacy of one {dp.unit} ({relation(config)}, trust {dp.trust}): epsilon at most "
        f"{plan.guarantee:.3f} at delta {delta:g}; this guarantee rests on {plan.rests_on}.{target}",
        f"Delta: {rule}.",
        f"Amplification by sampling {'claimed' if claim.claimed else 'not claimed'}: {claim.reason}.",
        f"Planned epsilon (expected participation, by Renyi): median {np.median(members):.3f}, 95th "
        f"percentile {np.quantile(members, 0.95):.3f}; by decile of public activity (and 95th percentile): "
        + ", ".join(planned_deciles(plan, activity)),
    ]


def planned(config: Config, holdings: Holdings, delta: float) -> tuple[Plan, NDArray[np.int64]]:
    """Return the plan, by the first round's inclusion, and the public activity of the first period."""
    activity = public_activity(holdings.activity(1), config.data.activity_public)
    devices = holdings.dataset.devices
    clock = Clock(config.availability, config.seed, len(devices), None)
    reachable = (
        clock.reachable(1) if config.availability.rule != "clock" else np.ones(len(devices), dtype=bool)
    )
    view = View(
        round=1,
        devices=devices,
        activity=activity,
        reachable=reachable,
        participation=np.zeros(len(devices), np.int64),
        rounds=config.train.rounds,
        privacy_cap=privacy_cap(config, int((activity > 0).sum())),
    )
    chances = _inclusion(view, config)
    public = weights_of_all(view, chances, config)
    over_time = public_over_time(config, holdings)
    guarantee, rests_on = guaranteed(config, delta, over_time)
    plan = make_plan(config, delta, activity, chances, public)
    return Plan(delta, guarantee, rests_on, plan.planned), activity


def planned_deciles(plan: Plan, activity: NDArray[np.int64]) -> list[str]:
    """Return median and 95th percentile of the planned epsilon by decile of activity, least active first."""
    members = np.flatnonzero(activity > 0)
    parts = np.array_split(
        members[np.argsort(activity[members], kind="stable")], max(1, min(DECILES, len(members)))
    )
    found = [plan.planned[part] for part in parts if len(part)]
    return [f"{np.median(each):.2f} ({np.quantile(each, 0.95):.2f})" for each in found]


def reaching(config: Config, epsilon: float, what: str = "noise") -> Config:
    """Return the config whose guarantee is at most `epsilon`. Raises WrongInput where none is."""
    if config.dp.unit == "none":
        raise WrongInput(
            'dp.unit = "none" promises nothing; set dp.unit = "example" or "device" to calibrate'
        )
    holdings = load_holdings(config, data_dir(config.place, {}))
    check_training(config, build_model(holdings.dataset.spec, config.model, config.seed))
    delta, _ = target_delta(config, protected_units(config, holdings.dataset))
    found = calibrate(config, epsilon, what, delta, public_over_time(config, holdings))
    check_dp(found)
    return found


def calibrated(config: Config, epsilon: float, what: str) -> list[str]:
    """Return the lines that tell which setting gives a guarantee of at most `epsilon`."""
    found = reaching(config, epsilon, what)
    holdings = load_holdings(config, data_dir(config.place, {}))
    delta, rule = target_delta(config, protected_units(config, holdings.dataset))
    guarantee, rests_on = guaranteed(found, delta, public_over_time(config, holdings))
    key = FOR[what]
    value = to_flat(found)[key]
    return [
        f"{key} = {value:.5g}" if isinstance(value, float) else f"{key} = {value}",
        f"epsilon at most {guarantee:.4f} at delta {delta:g} ({rule}); rests on {rests_on}.",
        f"Run it with: --set {key}={value!r}",
    ]


def _inclusion(view: View, config: Config) -> NDArray[np.float64]:
    """Return each device's chance in the first round; where a rule states none, the share of its draws."""
    if rule_of(config.selection).independent and config.selection.sampling == "poisson":
        return inclusion(view, config.selection)
    seen = np.zeros(len(view.devices))
    draws = 20
    for draw in range(draws):
        cohort = select(view, config.selection, generator(config.seed, "plan", draw))
        seen[np.searchsorted(view.devices, cohort.devices)] += 1 / draws
    return seen
