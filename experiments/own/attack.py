"""A membership attack of your own: a function of what models say of N records, scores [N] out.

[audit]
evaluators = "membership"
attacks = "loss,experiments.own.attack:surprise"
"""

import numpy as np

from fedsim.audit.scores import Floats, Target


def surprise(target: Target) -> Floats:
    """How much surer the model is of a record than references are, in their spread; larger: a
    member.

    `target.own` is what the attacked model says, [N]; `target.others` what each reference does, [R,
    N].
    """
    if target.references < 2:  # as in audits before the last round
        return target.own.phi
    others = target.others.phi
    scores: Floats = (target.own.phi - others.mean(0)) / np.maximum(others.std(0), 1e-3)
    return scores
