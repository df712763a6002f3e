"""The words and labels that plain updates reveal without any attack model."""

import numpy as np
from torch import nn

from fedsim.app.audits.replay import Round
from fedsim.audit.findings import Leak
from fedsim.audit.scores import Bools
from fedsim.audit.update_scores import hits, leaked_labels, leaked_tokens
from fedsim.data.holdings import Holdings
from fedsim.types import PAD, Examples, Params


class Leaks:
    """Precision and recall of the token set and the label set of every update that was seen."""

    def __init__(self, module: nn.Module, holdings: Holdings) -> None:
        self.holdings = holdings
        self.tables = [
            name for name, field in getattr(module, "tables", {}).items() if field == "tokens"
        ]
        self.hits: dict[str, list[tuple[float, float]]] = {"token_set": [], "label_set": []}

    def see(self, round: Round, device: str, change: Params) -> None:
        """Compare an update with the examples that the device held in the round."""
        held = self.holdings.train(device, round.period)
        for table in self.tables:
            truth = _among(held, "tokens", len(change[table]))
            truth[PAD] = False
            self.hits["token_set"].append(hits(leaked_tokens(change[table]), truth))
        labels = len(self.holdings.dataset.spec.labels)
        biases = [c for name, c in change.items() if name.endswith("bias") and c.shape == (labels,)]
        if biases and labels and "label" in held.fields:
            self.hits["label_set"].append(
                hits(leaked_labels(biases[-1]), _among(held, "label", labels))
            )

    def found(self, visible: str) -> list[Leak]:
        """Return each kind of leak as means over the updates.

        `visible` tells what an attacker sees of an update.
        """
        return [
            Leak(
                attack,
                view="updates",
                unit="device",
                precision=float(np.mean(each, 0)[0]),
                recall=float(np.mean(each, 0)[1]),
                updates=len(each),
                visible=visible,
            )
            for attack, each in self.hits.items()
            if each
        ]


def _among(examples: Examples, field: str, size: int) -> Bools:
    """Return which ids below `size` occur in a field."""
    found: Bools = np.isin(np.arange(size), examples.fields[field].numpy())
    return found
