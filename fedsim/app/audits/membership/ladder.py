"""Membership attacks by name: the built-in ladder, and your own code."""

import numpy as np

from fedsim.audit.attacks import ATTACKS, Attack, choose
from fedsim.audit.quantile import QUANTILE
from fedsim.audit.scores import Floats, Predictions, Target, fair_coins
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.names import check_names, import_object, is_own_code
from fedsim.seeds import generator

KEY = "audit.attacks"
TRIED_ON = 100
"""Number of made-up records on which your own attack is tried before a run trains."""


def attacks_of(config: Config, references: int) -> list[str]:
    """Return the attacks by name, the strongest last. Raises WrongInput."""
    if config.audit.attacks == "auto":
        best = choose(references)
        return ["loss"] if best == "loss" else ["loss", best]
    return check_names(KEY, config.audit.attacks, (*ATTACKS, QUANTILE), own=True)


def attack_of(name: str) -> Attack:
    """Return an attack by name; scores of own code are checked. Raises WrongInput."""
    if not is_own_code(name):
        return ATTACKS[name]
    own = import_object(KEY, name, "target: fedsim.audit.scores.Target")
    return lambda target: _checked(name, own(target), len(target.member))


def check_attacks(config: Config) -> None:
    """Refuse unknown attacks, and attacks of your own that fail on made-up records.

    Raises WrongInput.
    """
    audit = config.audit
    last = audit.references if audit.coins != "none" else 0
    counts = {last, 0} if audit.every else {last}  # only the last model has references
    for name in attacks_of(config, last):
        if is_own_code(name):
            for count in sorted(counts):
                _try(name, attack_of(name), count)


def _try(name: str, attack: Attack, references: int) -> None:
    try:
        attack(_made_up(references))
    except WrongInput:
        raise
    except Exception as error:
        raise WrongInput(
            f"{KEY} = {name!r} fails on {TRIED_ON} made-up records with {references} references: "
            f"{type(error).__name__}: {error}"
        ) from error


def _made_up(references: int) -> Target:
    """Return a target with random predictions."""
    rng = generator(0, "audit", "made up")
    phi = rng.normal(size=(references + 1, TRIED_ON))
    logp = -np.logaddexp(0.0, -phi)
    each = Predictions(logp, phi, -logp, phi > 0)
    keep = (
        fair_coins(references, TRIED_ON, 0) if references else np.zeros((0, TRIED_ON), dtype=bool)
    )
    return Target(rng.random(TRIED_ON) < 0.5, each[0], keep, each[np.arange(1, references + 1)])


def _checked(name: str, scores: object, records: int) -> Floats:
    """Return the scores [N] that an attack of your own gave.

    Raises WrongInput if it gave something else.
    """
    wanted = (
        f"{KEY} = {name!r} has to return a numpy array of {records} numbers, a score for each "
        "record"
    )
    if not isinstance(scores, np.ndarray):
        raise WrongInput(f"{wanted}; it returned a {type(scores).__name__}")
    if scores.shape != (records,) or scores.dtype.kind not in "fiu":
        raise WrongInput(f"{wanted}; it returned {scores.dtype} of the shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise WrongInput(f"{wanted}; {int((~np.isfinite(scores)).sum())} of them are not finite")
    return scores.astype(np.float64)
