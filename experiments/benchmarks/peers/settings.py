"""The settings that are measured, their made-up data and their cohorts: the same for every peer.

Imports only numpy and torch, so that a peer's own virtual environment can read it.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """A model, its data and how devices train on them."""

    name: str
    model: str
    """bag | bilstm | transformer | cnn | pfl_cnn"""
    cohort: int
    private_cohort: int
    """Devices a round under DP-SGD, fewer for the peers' sake."""
    classes: int = 60
    vocabulary: int = 10_000
    tokens: int = 20
    embedding: int = 64
    hidden: int = 64
    layers: int = 1
    heads: int = 4
    image: tuple[int, int, int] = (0, 0, 0)
    devices: int = 1000
    examples: int = 50
    """Mean number a device."""
    heavy: bool = False
    """Whether the sizes of each cohort have a heavy tail, with the same total."""
    zipf: bool = False
    """Whether words follow Zipf's law; else all are alike, which is the dearer case for ours."""
    batch: int = 10
    lr: float = 0.1
    clip: float = 1.0
    noise: float = 1.0

    @property
    def input(self) -> str:
        return "image" if self.image[0] else "tokens"


SETTINGS = {
    s.name: s
    for s in (
        Setting("pfl", "pfl_cnn", 50, 50, classes=10, hidden=128, image=(3, 32, 32)),
        Setting("nlu", "bag", 100, 20),
        Setting("bilstm", "bilstm", 100, 20),
        Setting("cnn", "cnn", 100, 20, classes=10, layers=2, image=(1, 28, 28)),
        Setting("cnn_heavy", "cnn", 100, 20, classes=10, layers=2, image=(1, 28, 28), heavy=True),
    )
}


def as_dict(setting: Setting) -> dict[str, Any]:
    return asdict(setting)


def from_dict(fields: dict[str, Any]) -> Setting:
    return Setting(**{**fields, "image": tuple(fields["image"])})


def cohorts(setting: Setting, rounds: int) -> list[list[int]]:
    """Return the devices of each round: blocks of one seeded order, from the start again at its
    end.
    """
    order = np.random.default_rng(1).permutation(setting.devices)
    blocks = max(1, setting.devices // setting.cohort)
    return [
        order[(r % blocks) * setting.cohort : (r % blocks + 1) * setting.cohort].tolist()
        for r in range(rounds)
    ]


def sizes(setting: Setting) -> list[int]:
    """Return the examples of a cohort's devices: all alike, or the quantiles of a lognormal law."""
    count = min(setting.cohort, setting.devices)
    if not setting.heavy:
        return [setting.examples] * count
    places = torch.tensor((np.arange(count) + 0.5) / count)
    tail = np.exp(1.2 * torch.special.ndtri(places).numpy())
    found = np.maximum(1, np.floor(tail * setting.examples * count / tail.sum())).astype(int)
    found[-1] += setting.examples * count - found.sum()  # the total is that of equal sizes
    return found.tolist()


def make_data(setting: Setting, rounds: int, file: Path) -> None:
    """Write the examples of every device that takes part in the first `rounds` rounds."""
    fields: dict[int, dict[str, Tensor]] = {}
    for cohort in cohorts(setting, rounds):
        for device, size in zip(cohort, sizes(setting), strict=True):
            fields[device] = made_up(setting, size, seed=device)
    torch.save(fields, file)


def made_up(setting: Setting, examples: int, seed: int) -> dict[str, Tensor]:
    """Return inputs and labels; words have ids from 2, and no example has padding."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(setting.classes, (examples,), generator=g)
    if setting.image[0]:
        return {"image": torch.randn(examples, *setting.image, generator=g), "label": label}
    shape = (examples, setting.tokens)
    words = setting.vocabulary - 2
    if setting.zipf:
        law = 1.0 / torch.arange(1, words + 1)
        ids = torch.multinomial(law, examples * setting.tokens, replacement=True, generator=g).view(
            shape
        )
    else:
        ids = torch.randint(words, shape, generator=g)
    return {"tokens": ids + 2, "label": label}


def load_data(file: str) -> dict[int, dict[str, Tensor]]:
    return torch.load(file, mmap=True)


def smaller(setting: Setting, **changes: Any) -> Setting:
    """Return the setting with every change that is not None."""
    return replace(setting, **{name: value for name, value in changes.items() if value is not None})
