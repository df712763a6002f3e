"""Metrics in the rows of a run: shown metrics, last values, forgetting and transfer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim.app.rundir.files import Row
from fedsim.app.rundir.round_record import Round

SHOWN = ("intent_accuracy", "slot_f1", "frame_accuracy", "accuracy", "span_f1", "word_accuracy")
"""Metrics in [0, 1] in the order in which they are shown; a run may lack some."""


def period_matrix(rows: Sequence[Row], metric: str) -> NDArray[np.float64]:
    """Return the metric after each period on the test of each: [periods + 1, periods].

    Row 0 is the untrained model.
    """
    periods = max((row["test_period"] for row in rows), default=0)
    matrix = np.full((periods + 1, periods), np.nan)
    for row in rows:
        if metric in row:
            matrix[row["after_period"], row["test_period"] - 1] = row[metric]
    return matrix


def transfer(matrix: NDArray[np.float64], metric: str) -> dict[str, float]:
    """Return forgetting, backward transfer and the prequential metric; {} for an unfinished matrix.

    R[p, q] is the metric after period p on the test examples of period q; there are P periods.
    `forgetting` is the mean over q < P of (max over q <= p < P of R[p, q]) - R[P, q] (Chaudhry et
    al., 2018). `backward_transfer` is the mean over q < P of R[P, q] - R[q, q] (Lopez-Paz and
    Ranzato, 2017). `prequential` is the mean over q of R[q - 1, q]: each period is a test before it
    is trained on. A single period has only `prequential`.
    """
    periods = matrix.shape[1]
    if not periods or np.isnan(matrix).any():
        return {}
    figures = {f"prequential_{metric}": float(np.mean([matrix[q, q] for q in range(periods)]))}
    if periods > 1:
        past = range(periods - 1)
        best = [matrix[q + 1 : periods, q].max() for q in past]
        final = [matrix[periods, q] for q in past]
        learned = [matrix[q + 1, q] for q in past]
        figures[f"forgetting_{metric}"] = float(np.mean(np.subtract(best, final)))
        figures[f"backward_transfer_{metric}"] = float(np.mean(np.subtract(final, learned)))
    return figures


def last_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Return the test metrics of the last evaluated round."""
    found = (Round.of(row).metrics for row in reversed(rows))
    return next((metrics for metrics in found if metrics), {})


def mean_flips(rows: list[Row]) -> dict[str, float]:
    """Return the mean of each rate over all releases except the first."""
    names = {
        name: None for row in rows for name in row if name.endswith(("_rate", "_mean", "_decile"))
    }
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def spent_by_round(rows: Sequence[Row]) -> list[tuple[int, float]]:
    """Return (round, largest epsilon spent so far, by RDP); [] without DP."""
    rounds = [Round.of(row) for row in rows]
    return [
        (each.round, each.dp_epsilon_spent_rdp)
        for each in rounds
        if each.dp_epsilon_spent_rdp is not None
    ]
