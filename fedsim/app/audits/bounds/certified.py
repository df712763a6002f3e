"""Lower bounds on a run's epsilon: from its coins, from a crafted canary, from canary devices."""

from dataclasses import replace

import numpy as np
import torch

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.bounds.crafted_canary import RUNS, AuditedCode, audit_devices, audit_examples
from fedsim.app.audits.membership.final import strongest_attack
from fedsim.app.audits.membership.threat import unlike
from fedsim.audit.bounds import Bound
from fedsim.audit.findings import LowerBound
from fedsim.audit.one_run import one_run
from fedsim.audit.one_shot import one_shot
from fedsim.config import Config
from fedsim.data.canary_devices import canary_names, random_direction
from fedsim.data.pool import pooled
from fedsim.errors import WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.privacy.accounting import epsilon
from fedsim.seeds import generator
from fedsim.types import Examples

FLOATS = 2 * 10**9
"""The largest number of noise values that a crafted audit draws."""
FEWEST = 100


def check_bounds(config: Config) -> None:
    """Refuse experiments that allow no lower bound. Raises WrongInput."""
    crafted = config.dp.unit != "none" and config.dp.trust != "secure_sum"
    if config.audit.coins == "none" and not crafted and not config.audit.canary_devices:
        raise WrongInput(
            'audit.evaluators = "bounds" needs audit.coins, or a [dp] unit without a secure sum, '
            "or audit.canary_devices"
        )


def bound_rows(audited: Audited) -> list[LowerBound]:
    """Return each bound that the config makes possible."""
    config = audited.config
    found = []
    if config.audit.coins != "none":
        found.append(_by_coins(audited))
    if config.dp.unit != "none" and config.dp.trust != "secure_sum" and audited.ended:
        found.append(_by_crafting(audited))
    if config.audit.canary_devices and audited.ended:
        found.append(_by_canary_devices(audited))
    return found


def _by_coins(audited: Audited) -> LowerBound:
    """Return the bound by the run's own coins (Steinke et al., 2023).

    It bounds the epsilon of the unit that the coins are about.
    """
    config, name, game, trial = audited.config, *strongest_attack(audited)
    delta = audited.delta or 1e-5
    rng = generator(config.seed, "audit", "one run", audited.round)
    reason = unlike(config, game.unit)
    return replace(
        _finding(one_run(trial.scores, trial.member, delta, rng)),
        unit=game.unit,
        view="final",
        game=game.name,
        attack=name,
        canaries=len(trial.member),
        note=reason or None,
        epsilon_ledger=None if reason else epsilon(audited.events, delta),
    )


def _by_crafting(audited: Audited) -> LowerBound:
    """Return the bound by a crafted canary (Jagielski et al., 2020).

    It audits one round of the run's own code: see crafted_canary.py.
    """
    config = audited.config
    start = parameters_of(build_model(audited.holdings.dataset.spec, config.model, config.seed))
    runs = int(np.clip(FLOATS // sum(p.numel() for p in start.values()), FEWEST, RUNS))
    code = AuditedCode(config, audited.module, audited.task, start, audited.delta, runs)
    if config.dp.unit == "device":
        found = audit_devices(code)
        what = "one round's noised sum"
    else:
        found = audit_examples(code, _four(audited))
        what = "one round of one device with 4 examples"
    return replace(
        _finding(found.bound),
        method="crafted canary, two worlds",
        unit=config.dp.unit,
        view=what,
        runs=runs,
        epsilon_ledger=found.epsilon,
    )


def _four(audited: Audited) -> Examples:
    """Return four records; the last is the canary.

    If records have labels, the canary gets a random one, so that its gradient stands out.
    """
    records = pooled(audited.holdings.dataset).records[:4]
    fields = dict(records.fields)
    if "label" in fields:
        rng = generator(audited.config.seed, "audit", "crafted label")
        label = fields["label"].clone()
        label[-1] = int(rng.integers(len(audited.holdings.dataset.spec.labels)))
        fields["label"] = label
    return Examples(fields)


def _by_canary_devices(audited: Audited) -> LowerBound:
    """Return an estimate by canary devices (Andrew et al., 2024).

    It compares the direction of the whole change with the directions that the canary devices sent.
    """
    config = audited.config
    start = parameters_of(build_model(audited.holdings.dataset.spec, config.model, config.seed))
    change = {name: audited.params[name].double() - p.double() for name, p in start.items()}
    size = torch.stack([c.square().sum() for c in change.values()]).sum().sqrt()
    cosines = []
    for name in canary_names(config.audit.canary_devices):
        direction = random_direction(start, config.seed, name)
        cosines.append(float(sum((change[n] * d).sum() for n, d in direction.items()) / size))
    dimensions = sum(p.numel() for p in start.values())
    found = one_shot(np.array(cosines), dimensions, audited.delta or 1e-5)
    return replace(
        _finding(found.bound),
        unit="device",
        view="final",
        canaries=len(cosines),
        epsilon_estimate=found.epsilon_estimate,
        epsilon_ledger=epsilon(audited.events, audited.delta)
        if config.dp.unit == "device"
        else None,
    )


def _finding(bound: Bound) -> LowerBound:
    return LowerBound(
        bound.method,
        bound.epsilon_low,
        ceiling=bound.ceiling,
        confidence=bound.confidence,
        delta=bound.delta,
        assumptions=bound.assumptions,
        estimate=bound.estimate,
    )
