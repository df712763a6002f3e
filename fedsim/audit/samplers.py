"""A test of whether batches are Poisson samples, as the accountant assumes."""

from scipy import stats

from fedsim.audit.scores import Bools, Floats


def poisson_p_value(inclusions: Bools, rate: float) -> float:
    """Return the two-sided p-value of the counts under independent coins.

    inclusions: [steps, records]. Batch sizes and each record's number of batches should both vary
    as binomials. Their sums of squares over the variance are chi-squared (nearly, for counts of 5
    and more), and so is that of the total. The test is two-sided, with Bonferroni over the three.
    """
    steps, records = inclusions.shape
    return min(
        1.0,
        3
        * min(
            _dispersion(inclusions.sum(1), records, rate),
            _dispersion(inclusions.sum(0), steps, rate),
            _dispersion(inclusions.sum(keepdims=True).ravel(), steps * records, rate),
        ),
    )


def _dispersion(counts: Floats, trials: int, rate: float) -> float:
    squares = float(((counts - trials * rate) ** 2).sum() / (trials * rate * (1 - rate)))
    law = stats.chi2(len(counts))
    return float(2 * min(law.cdf(squares), law.sf(squares)))
