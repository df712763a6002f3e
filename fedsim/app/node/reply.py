"""The answer of a node to a task: the sum of its devices' updates, or each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from clients.device_clip import DeviceClip
from clients.training import Assignment, Trainer
from fedsim.config import Aggregation, Config
from fedsim.data.canary_devices import is_canary_device, random_direction
from fedsim.types import Asked, Cohort, DeviceId, Params, Reply, Update, no_update
from fedsim.wire import NOT_FINITE


@dataclass(frozen=True)
class Job:
    """What a node is asked to do in a round."""

    trainer: Trainer
    params: Params
    assigned: Sequence[Assignment]
    config: Config
    cohort: Cohort
    clip: DeviceClip | None = None

    @property
    def masked(self) -> bool:
        """Whether the sum is of masked numbers. A masked number alone reveals nothing."""
        dp = self.config.dp
        return dp.unit != "none" and dp.trust == "secure_sum"

    def train(self, assigned: Sequence[Assignment]) -> Update:
        """Return the sum of these devices' updates; an audit's canary devices send a direction."""
        seed = self.config.seed
        cohort = self.cohort
        canaries = [
            a for a in assigned if self.config.audit.canary_devices and is_canary_device(a.device)
        ]
        natural = [a for a in assigned if a not in canaries] if canaries else assigned
        total = self.trainer.train(
            self.params, natural, seed, cohort.round, self.clip, cohort.survivors
        )
        return sum((self._direction(a) for a in canaries), total)

    def _direction(self, a: Assignment) -> Update:
        """Return a random direction with the largest allowed norm, as a term of the sum."""
        size = a.weight * self.cohort.clip_norm
        direction = random_direction(self.params, self.config.seed, a.device)
        return Update({n: size * d for n, d in direction.items()}, a.weight, 1, {"steps": 0.0})


def answer(job: Job, form: Asked) -> Reply:
    """Train the assigned devices and return what the server asked for.

    The devices train as one batch if their sum is enough. They train one by one if the server wants
    single updates or figures, if norms are bounded, or if the sum is not finite. Devices at fault
    are then left out and named. A secure sum leaves out no device: an update that is not finite
    counts as zeros.
    """
    if job.masked or not (form.single or form.figures or job.config.aggregation.max_norm):
        total = job.train(job.assigned)
        if job.masked and not total.finite:
            total = sum((_finite(job, a) for a in job.assigned), no_update(job.params))
        if total.finite or job.masked:
            return Reply(job.cohort.round, _names(job.assigned), total)
    return answer_each(job, form)


def _finite(job: Job, a: Assignment) -> Update:
    """Return a device's term of a secure sum, or zeros if it is not finite.

    Clipping turns broken examples into zeros. A term is therefore not finite only if the device's
    parameters overflowed.
    """
    update = job.train([a])
    return update if update.finite else replace(no_update(job.params), weight=a.weight, devices=1)


def answer_each(job: Job, form: Asked) -> Reply:
    """Return the sum, or the single updates, of the devices that pass the node's own checks."""
    params = job.params
    settings = job.config.aggregation
    total = replace(no_update(params), delta={}) if form.single else no_update(params)
    kept: list[Assignment] = []
    rows: list[Params] = []
    figures: list[dict[str, float]] = []
    rejected: dict[DeviceId, str] = {}
    for a in job.assigned:
        update = job.train([replace(a, weight=1.0)])
        reason = fault(update, settings)
        if reason:
            rejected[a.device] = reason
            continue
        bounded = bound(update, settings)
        if form.single:
            rows.append({name: d.float() for name, d in bounded.delta.items()})
            bounded = replace(bounded, delta={})
        total = total + weighted(bounded, a.weight)
        kept.append(a)
        figures.append(update.metrics)
    if form.single:
        total = replace(total, delta=_stacked(rows, params))
    told = figures if form.single or form.figures else []
    return Reply(job.cohort.round, _names(kept), total, form.single, _columns(told), rejected)


def fault(update: Update, settings: Aggregation) -> str:
    """Return why a device's own update may not leave the node, or an empty string."""
    if not update.finite:
        return NOT_FINITE
    if settings.max_norm and settings.over_norm == "reject" and update.norm > settings.max_norm:
        return f"its norm is {update.norm:.4g}, aggregation.max_norm {settings.max_norm:g}"
    return ""


def bound(update: Update, settings: Aggregation) -> Update:
    """Return the update, scaled down to `aggregation.max_norm` if its norm is larger."""
    if not settings.max_norm or update.norm <= settings.max_norm:
        return update
    factor = settings.max_norm / update.norm
    return replace(update, delta={name: factor * d for name, d in update.delta.items()})


def weighted(update: Update, weight: float) -> Update:
    """Return an unweighted update as a term of a weighted sum."""
    return replace(
        update, delta={name: weight * d for name, d in update.delta.items()}, weight=weight
    )


def _names(assigned: Sequence[Assignment]) -> NDArray[np.str_]:
    return np.array([a.device for a in assigned], dtype=np.str_)


def _stacked(rows: Sequence[Params], params: Params) -> Params:
    """Return the rows stacked as [devices, ...] for each parameter."""
    if not rows:
        return {name: torch.zeros((0, *p.shape)) for name, p in params.items()}
    return {name: torch.stack([row[name] for row in rows]) for name in params}


def _columns(figures: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    known = figures[0] if figures else {}
    return {name: np.array([f[name] for f in figures], dtype=np.float64) for name in known}
