"""A federation of your own: any object with these attributes and `train(device)`.

[data]
source = "experiments.own.dataset:colours"
task = "classification"
"""

from pathlib import Path

import numpy as np
import torch

from fedsim.config import Data
from fedsim.seeds import generator
from fedsim.types import DeviceId, Examples, Spec

WORDS = ("red", "rose", "fire", "blue", "sky", "sea", "green", "leaf", "grass")
LABELS = ("blue", "green", "red")


class Colours:
    """Devices that name things by colour; three words an example, all of one colour."""

    def __init__(self, data: Data) -> None:
        self.devices = np.array([f"d{i:03d}" for i in range(data.devices)])
        self.activity = np.full(data.devices, 12)
        self.spec = Spec(data.task, vocabulary=2 + len(WORDS), words=WORDS, labels=LABELS)
        self.dev = None
        self.test = self._examples("test", 300)
        self.fingerprint = {"colours": f"seed {data.seed}"}
        self.notes = ("made up on the spot",)
        self.seed = data.seed

    def train(self, device: DeviceId) -> Examples:
        return self._examples(device, 12)

    def _examples(self, name: str, count: int) -> Examples:
        rng = generator(0, "colours", name)
        group = rng.integers(3, size=count)  # 0 red, 1 blue, 2 green, as WORDS are ordered
        tokens = 2 + 3 * group[:, None] + rng.integers(3, size=(count, 3))
        label = np.array([2, 0, 1])[group]
        return Examples({"tokens": torch.from_numpy(tokens), "label": torch.from_numpy(label)})


def colours(data: Data, data_dir: Path | None) -> Colours:
    """Called with the `[data]` section and the data directory (None where none was named)."""
    return Colours(data)
