"""An audit of the run's own DP code by a crafted canary.

It makes many releases with the canary and as many without it, and bounds epsilon from them. It
audits one round: one device's DP-SGD (unit "example") or the server's noised sum (unit "device").
The canary is the worst neighbour that the clip allows, and no other record hides it. The bound
therefore comes close to the ledger's epsilon of that round. Code without noise or with a loose clip
shows a bound above that epsilon.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from clients.clipping import Clip, clipped_gradients
from clients.training import Assignment, Trainer
from fedsim.app.place import chunk_bytes
from fedsim.audit.bounds import Bound, two_worlds
from fedsim.audit.scores import Floats
from fedsim.config import Config
from fedsim.data.canary_devices import random_direction
from fedsim.models.tasks import Task
from fedsim.privacy.accounting import Event, epsilon
from fedsim.privacy.local_plan import LocalPlan, local_plan
from fedsim.privacy.mechanism import device_mechanism
from fedsim.privacy.noise import Seeded
from fedsim.seeds import generator
from fedsim.types import Examples, Params, Update, no_update
from strategies.aggregation import make_aggregator
from strategies.noised_sum import with_privacy

RUNS = 1000
"""Releases in each world; they allow a bound of at most 4.6 at 95 % confidence."""
OTHERS = 3


@dataclass(frozen=True)
class Crafted:
    """The bound, and the ledger's epsilon of the releases that were audited."""

    bound: Bound
    epsilon: float


@dataclass(frozen=True)
class AuditedCode:
    """The code that is audited: a run's model and settings.

    `runs` is the number of releases in each world.
    """

    config: Config
    module: nn.Module
    task: Task
    params: Params
    delta: float
    runs: int = RUNS

    @property
    def coins(self) -> np.random.Generator:
        return generator(self.config.seed, "audit", "crafted")


def audit_examples(code: AuditedCode, records: Examples) -> Crafted:
    """Audit one round of one device that holds 3 records, with and without a fourth.

    `records` [4]: the last is the canary; the attacker looks for its gradient. The public activity
    is 4 in both worlds. The audit has noise keys of its own, so it repeats no noise of the run.
    """
    direction = canary_direction(code, records[OTHERS : OTHERS + 1])
    without = _projections(code, records[:OTHERS], direction, "without")
    within = _projections(code, records[: OTHERS + 1], direction, "within")
    events = plan_events(local_plan(code.config.dp, code.config.train, OTHERS + 1))
    bound = two_worlds(*weighed(without, within), code.delta, code.coins)
    return Crafted(bound, epsilon(events, code.delta))


def plan_events(plan: LocalPlan) -> list[Event]:
    """Return the events that a round's local steps are for one example on a device."""
    return [Event(z, plan.sampling_rate, count) for z, count in plan.multipliers().items()]


def canary_direction(code: AuditedCode, canary: Examples) -> Params:
    """Return the direction in which the canary moves the model: minus its gradient, of norm 1."""
    task = code.task
    names = sorted(canary.fields)
    inputs = [canary.fields[name] for name in task.inputs]

    def losses(outputs: dict[str, Tensor], *targets: Tensor) -> Tensor:
        return task.losses(outputs, dict(zip(names, targets, strict=True)))

    code.module.eval()
    targets = [canary.fields[name] for name in names]
    sums = clipped_gradients(code.module, losses, inputs, targets, Clip(1.0), code.params).sums
    found = {name: g for name, g in sums.items() if isinstance(g, Tensor)}
    code.module.train()
    size = torch.stack([g.double().square().sum() for g in found.values()]).sum().sqrt()
    return {name: -g.double() / size.clamp(min=1e-12) for name, g in found.items()}


def _projections(code: AuditedCode, examples: Examples, direction: Params, world: str) -> Floats:
    """Return how far each parameter moved in the canary's direction, [runs, parts]."""
    config = code.config
    noise = Seeded(config.seed, f"audit {config.hash} {world}")
    trainer = Trainer(
        code.module, code.task, config.train, chunk_bytes(config.place), config.dp, noise
    )
    found = []
    for number in range(code.runs):
        device = Assignment(f"run-{number}", examples, 1.0, OTHERS + 1)
        delta = trainer.train(code.params, [device], config.seed, round=1).delta
        found.append(along(delta, direction))
    return np.array(found)


def weighed(without: Floats, within: Floats) -> tuple[Floats, Floats]:
    """Return one score for each run: the weighted sum of its parts.

    without, within: [runs, parts]. A part weighs more the better it separates the two worlds. The
    weights come from a quarter of the runs, and that quarter gets no scores; so the weights do not
    depend on the runs that are scored. A part without noise outweighs all noisy ones.
    """
    fit = len(without) // 4
    gap = within[:fit].mean(0) - without[:fit].mean(0)
    spread = (without[:fit].var(0) + within[:fit].var(0)) / 2
    weights = gap / (spread + 1e-12 * max(spread.max(), 1e-300))
    return without[fit:] @ weights, within[fit:] @ weights


def audit_devices(code: AuditedCode) -> Crafted:
    """Audit one round's noised sum, with and without a crafted device.

    Its change has the largest norm and weight; in the other world it sends zeros.
    """
    direction = random_direction(code.params, code.config.seed, "crafted")
    mechanism = device_mechanism(code.config)
    size = mechanism.sensitivity(code.config.dp.clip_norm)
    moved = Update({n: size * d for n, d in direction.items()}, mechanism.max_weight, 1, {})
    without = np.array(list(_steps(code, no_update(code.params), direction, "without")))
    within = np.array(list(_steps(code, moved, direction, "within")))
    bound = two_worlds(*weighed(without, within), code.delta, code.coins)
    return Crafted(bound, epsilon([mechanism.event(1.0, mechanism.max_weight)], code.delta))


def _steps(
    code: AuditedCode, total: Update, direction: Params, world: str
) -> Iterator[list[float]]:
    """Yield how far the model of each run moves in each parameter.

    The rule is plain averaging; other rules only process its result.
    """
    zero = {name: torch.zeros_like(p) for name, p in code.params.items()}
    settings = code.config.aggregation.model_copy(update={"rule": "fedavg"})
    config = code.config.model_copy(update={"aggregation": settings})
    for number in range(code.runs):
        noise = Seeded(config.seed, f"audit {config.hash} {world} {number}")
        aggregator = with_privacy(make_aggregator(settings), config, config.selection.cohort, noise)
        yield along(aggregator.step(zero, total, aggregator.init(zero))[0], direction)


def along(change: Params, direction: Params) -> list[float]:
    """Return the inner product of a change and a direction for each parameter."""
    return [float((change[name].double() * d).sum()) for name, d in direction.items()]
