"""Results of a membership attack over its targets: areas, rates, precision, ROC, intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedsim.audit.findings import Area, AttackFigures, Curve
from fedsim.audit.intervals import FEWEST_TARGETS, over_targets, proportion_high, proportion_low
from fedsim.audit.roc import (
    EXPECTED_ALARMS,
    auc,
    auc_standard_error,
    balanced_accuracy,
    precision,
    roc,
)
from fedsim.audit.scores import Bools, Floats

POINTS = 120
LOWEST = 1e-4
Z = 1.959963984540054


@dataclass(frozen=True)
class Trial:
    """An attack on one target: its scores, larger for "member", and the truth."""

    scores: Floats
    member: Bools

    def only(self, which: Bools) -> "Trial":
        return Trial(self.scores[which], self.member[which])

    @property
    def judged(self) -> bool:
        """Whether there are at least two members and two others."""
        return min(int(self.member.sum()), int((~self.member).sum())) >= 2


@dataclass(frozen=True)
class Group:
    """A named part of the records, with the attack's area on it."""

    value: int | str | bool
    records: int
    area: Area


def attack_figures(trials: Sequence[Trial], rng: np.random.Generator) -> AttackFigures:
    """Return the figures of an attack, each a mean over its targets.

    From 5 targets on, intervals are over targets. Below 5 they are over the records of the first
    target (DeLong et al., 1988), which says less; `interval` names the kind. A rate with too few
    non-members is left out.
    """
    members = int(trials[0].member.sum())
    others = int((~trials[0].member).sum())
    found = AttackFigures(
        area=area(trials, rng),
        balanced_accuracy=float(np.mean([balanced_accuracy(t.scores, t.member) for t in trials])),
        records=members + others,
        members=members,
        targets=len(trials),
        tpr_at_1pct=_rate(0.01, trials),
        tpr_at_01pct=_rate(0.001, trials),
        curve=curve(trials, rng),
    )
    if found.tpr_at_1pct is None:
        why = (
            f"{others:,} non-members in each of {len(trials)} target(s) are too few for a rate at "
            "1 % false positives, which wants 1,000 in all"
        )
        return replace(found, too_few=why)
    return replace(
        found,
        ppv_1pct=precision(found.tpr_at_1pct, 0.01, prior=0.01),
        ppv_10pct=precision(found.tpr_at_1pct, 0.01, prior=0.1),
        ppv_50pct=precision(found.tpr_at_1pct, 0.01, prior=0.5),
    )


def area(trials: Sequence[Trial], rng: np.random.Generator) -> Area:
    """Return the area under the ROC curve, a mean over targets, with its interval."""
    values = np.array([auc(t.scores, t.member) for t in trials])
    if len(trials) >= FEWEST_TARGETS:
        found = over_targets(values, rng)
        return Area(found.mean, max(0.0, found.low), min(1.0, found.high), found.method)
    error = float(np.mean([auc_standard_error(t.scores, t.member) for t in trials]))
    mean = float(values.mean())
    over = "one target" if len(trials) == 1 else f"{len(trials)} targets"
    low = max(0.0, mean - Z * error)
    high = min(1.0, mean + Z * error)
    return Area(mean, low, high, f"records of {over} (DeLong)")


def curve(trials: Sequence[Trial], rng: np.random.Generator) -> Curve:
    """Return the mean ROC at false positive rates on a log axis, with a band at each point."""
    others = min(int((~t.member).sum()) for t in trials)
    grid = np.unique(np.round(np.geomspace(max(LOWEST, 1 / others), 1, POINTS) * others)) / others
    each = np.stack([_at(grid, t) for t in trials])
    if len(trials) >= FEWEST_TARGETS:
        band = [over_targets(column, rng) for column in each.T]
        low = np.array([b.low for b in band])
        high = np.array([b.high for b in band])
    else:
        members = int(trials[0].member.sum())
        hits = np.round(each[0] * members)
        low = proportion_low(hits, members, 0.025)
        high = proportion_high(hits, members, 0.025)
    lists = (grid, each.mean(0), low.clip(0, 1), high.clip(0, 1))
    return Curve(*(tuple(values.tolist()) for values in lists))


def sliced(
    trials: Sequence[Trial],
    groups: Sequence[tuple[int | str | bool, Bools]],
    rng: np.random.Generator,
) -> list[Group]:
    """Return the area on each named group that has members and others in every target."""
    found = []
    for value, which in groups:
        parts = [t.only(which) for t in trials]
        if all(p.judged for p in parts):
            found.append(Group(value, int(which.sum()), area(parts, rng)))
    return found


def _rate(fpr: float, trials: Sequence[Trial]) -> float | None:
    """Return the mean true positive rate at a false positive rate; None with too few records."""
    if not _enough(fpr, trials):
        return None
    return float(np.mean(np.stack([_at(np.array([fpr]), t) for t in trials])))


def _enough(fpr: float, trials: Sequence[Trial]) -> bool:
    """Whether the rate rests on 10 false positives over all targets and at least one in each."""
    alarms = [fpr * int((~t.member).sum()) for t in trials]
    return min(alarms) >= 1 and sum(alarms) >= EXPECTED_ALARMS * (1 - 1e-9)


def _at(grid: Floats, trial: Trial) -> Floats:
    false, true = roc(trial.scores, trial.member)
    found: Floats = true[np.searchsorted(false, grid * (1 + 1e-9), side="right") - 1]
    return found
