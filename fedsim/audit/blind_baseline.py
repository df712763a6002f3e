"""The blind baseline: how well membership can be guessed without looking at any model."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedsim.audit.roc import auc
from fedsim.audit.scores import Bools, Floats


def blind_auc(features: Floats, member: Bools, rng: np.random.Generator) -> float:
    """Return the AUC of a logistic regression on facts about records that need no model.

    features: [N, F], for example label, device and length. A fit on one half of the records judges
    the other half. The two halves say nearly the same, so the standard error is that of one half.
    Above .5, members and non-members differ by themselves, and attacks on the model find that too.

    Members here were collected later than non-members, so the date alone tells them apart:

    >>> import numpy as np
    >>> from fedsim import blind_auc
    >>> day = np.arange(40.0)[:, None]
    >>> blind_auc(day, member=np.arange(40) >= 20, rng=np.random.default_rng(1))
    1.0
    """
    order = rng.permutation(len(member))
    halves = order[::2], order[1::2]
    areas = []
    for fitted, judged in (halves, halves[::-1]):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        scores = model.fit(features[fitted], member[fitted]).decision_function(features[judged])
        areas.append(auc(scores, member[judged]))
    return float(np.mean(areas))


def histogram_scores(items: Floats, known: Bools) -> Floats:
    """Return how much more common a record's items are on a device than overall, log ratios [N].

    items: counts [N, V] of each record's labels or words. `known` [N] marks the device's records
    that the attacker knows. Where the record itself is one of them, it is taken out first.
    """
    everyone = items.sum(0) + 1
    own = items[known].sum(0) - np.where(known[:, None], items, 0.0) + 1
    ratio = np.log(own / own.sum(1, keepdims=True)) - np.log(everyone / everyone.sum())
    score: Floats = (items * ratio).sum(1) / np.maximum(items.sum(1), 1)
    return score
