"""Membership by quantile regression: no reference models, but a public pool of non-members."""

import numpy as np

from fedsim.audit.scores import Floats
from fedsim.errors import WrongInput

QUANTILE = "quantile"
FEWEST = 20
"""Fewest pool records beyond the quantile in each half of the pool."""


def quantile_regression(
    features: Floats, phi: Floats, pool_features: Floats, pool_phi: Floats, fpr: float = 0.01
) -> Floats:
    """Return phi - its predicted (1 - fpr) quantile among non-members like this record.

    After Bertran et al. (2023). features: [N, F] and phi: [N] are of the records; [P, F] and [P]
    are of a public pool that the model never saw. One half of the pool fits the quantile. The other
    half shifts it so that it holds beyond the fit (Romano et al., 2019). A score above 0 means
    "member". The false positive rate is `fpr` on average over records from the pool's distribution.
    Raises WrongInput for a pool too small.
    """
    if len(pool_phi) * fpr < 2 * FEWEST:
        raise WrongInput(
            f"quantile regression at a false positive rate of {fpr:g} wants "
            f"{2 * FEWEST / fpr:,.0f} pool records that the model never saw, got "
            f"{len(pool_phi):,}; raise the rate or the pool"
        )
    from sklearn.ensemble import (
        HistGradientBoostingRegressor,
    )  # this import takes a second, which only this attack needs

    model = HistGradientBoostingRegressor(
        loss="quantile", quantile=1 - fpr, min_samples_leaf=FEWEST
    )
    model.fit(pool_features[::2], pool_phi[::2])
    left = np.sort(pool_phi[1::2] - model.predict(pool_features[1::2]))
    shift = left[int(np.ceil((len(left) + 1) * (1 - fpr))) - 1]
    return phi - model.predict(features) - shift
