"""Measures of an attack's scores: AUC, error rates, precision, ROC points."""

import numpy as np
from scipy.stats import rankdata

from fedsim.audit.scores import Bools, Floats
from fedsim.errors import WrongInput

EXPECTED_ALARMS = 10
"""A true positive rate at a given false positive rate must rest on this many false positives."""


def auc(scores: Floats, member: Bools) -> float:
    """Return P(a member scores higher than a non-member); ties count half.

    After Mann and Whitney (1947). Here three of the four pairs of a member and a non-member are in
    order:

    >>> import numpy as np
    >>> from fedsim import auc
    >>> auc(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]))
    0.75
    """
    inside, outside = _counts(scores, member)
    ranks = rankdata(scores)[member].sum()
    return float((ranks - inside * (inside + 1) / 2) / (inside * outside))


def null_standard_error(members: int, non_members: int) -> float:
    """Return the standard error of the AUC of random scores (Mann and Whitney, 1947)."""
    return float(np.sqrt((members + non_members + 1) / (12 * members * non_members)))


def auc_standard_error(scores: Floats, member: Bools) -> float:
    """Return the standard error of the AUC over records of one target (DeLong et al., 1988)."""
    inside, outside = _counts(scores, member)
    if min(inside, outside) < 2:
        raise WrongInput(
            "a standard error of the AUC wants two members and two non-members at least"
        )
    all_ranks = rankdata(scores)
    above = (all_ranks[member] - rankdata(scores[member])) / outside
    below = 1 - (all_ranks[~member] - rankdata(scores[~member])) / inside
    return float(np.sqrt(above.var(ddof=1) / inside + below.var(ddof=1) / outside))


def balanced_accuracy(scores: Floats, member: Bools) -> float:
    """Return the mean of true positive and true negative rate, with thresholds from other records.

    The best threshold of the even records judges the odd ones, and the reverse. So random scores
    give .5, not the best of many thresholds.
    """
    _counts(scores, member)
    even = np.zeros(len(scores), dtype=bool)
    even[np.concatenate([np.flatnonzero(member)[::2], np.flatnonzero(~member)[::2]])] = True
    halves = []
    for chosen, judged in ((even, ~even), (~even, even)):
        threshold = _best_threshold(scores[chosen], member[chosen])
        says = scores[judged] >= threshold
        truth = member[judged]
        halves.append((says[truth].mean() + 1 - says[~truth].mean()) / 2)
    return float(np.mean(halves))


def enough_non_members(fpr: float, non_members: int) -> bool:
    """Whether a true positive rate at `fpr` rests on 10 false positives.

    At 0.1 % this needs 10,000 non-members.
    """
    return non_members * fpr >= EXPECTED_ALARMS * (1 - 1e-9)


def tpr_at(fpr: float, scores: Floats, member: Bools) -> float:
    """Return the largest true positive rate whose false positive rate is at most `fpr`.

    Raises WrongInput where there are too few non-members for a meaningful rate.

    Non-members score 0 to 99, so ten of them lie above 89.5:

    >>> import numpy as np
    >>> from fedsim import tpr_at
    >>> scores = np.append(np.arange(100.0), [50.5, 89.5, 95.5, 99.5])
    >>> tpr_at(0.1, scores, member=np.arange(104) >= 100)
    0.75
    """
    _, outside = _counts(scores, member)
    if not enough_non_members(fpr, outside):
        raise WrongInput(
            f"the true positive rate at {fpr:.1%} false positives wants "
            f"{EXPECTED_ALARMS / fpr:,.0f} non-members, got {outside:,}"
        )
    false, true = roc(scores, member)
    return float(true[np.searchsorted(false, fpr * (1 + 1e-9), side="right") - 1])


def precision(tpr: float, fpr: float, prior: float) -> float:
    """Return the share of members among records called members, by Bayes' rule.

    `prior` is the share of members among all records.
    """
    called = prior * tpr + (1 - prior) * fpr
    return prior * tpr / called if called else 0.0


def roc(scores: Floats, member: Bools) -> tuple[Floats, Floats]:
    """Return false and true positive rates from (0, 0) to (1, 1), one point a distinct score."""
    inside, outside = _counts(scores, member)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores cross the threshold together
    true = np.cumsum(member[order])[last] / inside
    false = np.cumsum(~member[order])[last] / outside
    return np.append(0.0, false), np.append(0.0, true)


def log_points(scores: Floats, member: Bools, points: int = 100) -> tuple[Floats, Floats]:
    """Return the ROC at false positive rates evenly spread on a log axis, from one alarm up to 1.

    It is a step curve: each true positive rate was reached, and none is interpolated.
    """
    false, true = roc(scores, member)
    _, outside = _counts(scores, member)
    grid = np.unique(np.round(np.geomspace(1, outside, points))) / outside
    return grid, true[np.searchsorted(false, grid * (1 + 1e-9), side="right") - 1]


def _best_threshold(scores: Floats, member: Bools) -> float:
    false, true = roc(scores, member)
    distinct = np.append(np.inf, np.unique(scores)[::-1])
    return float(distinct[np.argmax(true - false)])


def _counts(scores: Floats, member: Bools) -> tuple[int, int]:
    """Return the numbers of members and of non-members. Raises WrongInput for nonsense."""
    if scores.shape != member.shape or not np.isfinite(scores).all():
        raise WrongInput(
            f"scores and members want one finite value a record each, got shapes {scores.shape} "
            f"and {member.shape} and {int((~np.isfinite(scores)).sum())} scores that are not "
            "finite"
        )
    inside = int(member.sum())
    if inside in (0, len(member)):
        raise WrongInput("an attack is measured on members and non-members; one of both is missing")
    return inside, len(member) - inside
