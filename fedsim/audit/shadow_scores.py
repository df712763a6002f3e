"""Shadow models: a given trainer trains them in groups; they are scored once and kept by name."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fedsim.audit.scores import Bools, Scores, load_scores, predictions, stack
from fedsim.errors import WrongInput

TrainShadows = Callable[[Bools, Sequence[int]], Tensor]
"""(keep [m, N], the models' numbers) -> logits [m, N, C] of m separately trained models.

The logits cover ALL records. A model's number names its randomness, so groups of another size give
the same models.
"""


def score_shadows(keep: Bools, labels: Tensor, train: TrainShadows, at_once: int = 64) -> Scores:
    """Return the scores of M models trained `at_once` at a time. keep: [M, N]; labels: [N].

    Raises WrongInput where the trainer's logits have another shape.
    """
    parts = []
    for first in range(0, len(keep), at_once):
        group = keep[first : first + at_once]
        logits = train(group, range(first, first + len(group)))
        if logits.shape[:-1] != group.shape:
            raise WrongInput(
                f"a trainer of {group.shape} models and records gave logits {tuple(logits.shape)}"
            )
        parts.append(predictions(logits, labels))
    return Scores(keep, stack(parts))


def cached(folder: Path, identity: Mapping[str, object], make: Callable[[], Scores]) -> Scores:
    """Return the scores that `folder` keeps under this identity; make and keep missing ones.

    identity: everything that changes the scores: config hash, seed, data fingerprint, models, game.
    """
    text = json.dumps(identity, sort_keys=True)
    path = folder / f"shadows-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make().save(path)
    return load_scores(path)
