"""The values that travel between data, selection, training and aggregation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DeviceId = str
Params = dict[str, Tensor]
"""A model's parameters by name, float32 in `state_dict` order."""

PAD = 0
UNKNOWN = 1
"""Token ids that are no word: filling behind the last token, and a word that training never saw."""


@dataclass(frozen=True)
class Examples:
    """Records as tensors that share their first axis: one row is one example.

    Text has `tokens` [n, length] (int64, PAD behind the last token). Beside them stand `label` [n],
    `tags` [n, length] (-1 at PAD) or `next` [n, length] (the id of the next token; PAD where there
    is none). Images have `image` [n, channels, height, width] and `label`.
    """

    fields: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: slice | Tensor) -> "Examples":
        """Return the rows at `index`; a slice gives views of the same memory."""
        return Examples({name: tensor[index] for name, tensor in self.fields.items()})

    def to(self, device: torch.device) -> "Examples":
        return Examples({name: tensor.to(device) for name, tensor in self.fields.items()})


@dataclass(frozen=True)
class Ragged:
    """How a field of sequences is padded, and which field tells where a sequence ends."""

    fill: int
    along: str


RAGGED = {
    "tokens": Ragged(PAD, "tokens"),
    "tags": Ragged(-1, "tokens"),
    "next": Ragged(PAD, "tokens"),
}
"""The fields whose last axis is time; all others have one shape in every example."""


def same_width(parts: Sequence[Examples]) -> list[Examples]:
    """Fill the sequences of each part up to the longest of all parts."""
    widths = {
        name: max(p.fields[name].shape[-1] for p in parts)
        for name in parts[0].fields
        if name in RAGGED
    }
    return [
        Examples({n: _widen(n, t, widths.get(n, 0)) for n, t in p.fields.items()}) for p in parts
    ]


def trim(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut the padding that no example of the batch needs; leading axes are free."""
    ends = {
        name: _longest(name, fields[name])
        for name, r in RAGGED.items()
        if r.along == name in fields
    }
    return {n: t[..., : ends[RAGGED[n].along]] if n in RAGGED else t for n, t in fields.items()}


def _widen(name: str, field: Tensor, width: int) -> Tensor:
    missing = width - field.shape[-1]
    if name not in RAGGED or missing <= 0:
        return field
    return torch.nn.functional.pad(field, (0, missing), value=RAGGED[name].fill)


def _longest(name: str, field: Tensor) -> int:
    return int((field != RAGGED[name].fill).sum(-1).max().clamp(min=1))


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Join examples row-wise."""
    wide = same_width(parts)
    return Examples({name: torch.cat([p.fields[name] for p in wide]) for name in wide[0].fields})


@dataclass(frozen=True)
class Spec:
    """What a model must know of the data: sizes and names, no examples.

    Training examples hold the names in `labels` and `tags`. Only test or dev examples hold those in
    `labels_unseen` and `tags_unseen`. Their ids come last, and no model can predict them.
    """

    task: str
    vocabulary: int = 0
    """How many token ids there are."""
    words: tuple[str, ...] = ()
    """The words of ids 2, 3, ...; empty for hashed buckets."""
    labels: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    labels_unseen: tuple[str, ...] = ()
    tags_unseen: tuple[str, ...] = ()
    image: tuple[int, int, int] = (0, 0, 0)
    """Channels, height and width; zeros for text."""
    label_tokens: tuple[tuple[int, ...], ...] = ()
    """Ids of the words in each label's name; empty unless words are hashed."""
    length: int = 0
    """The most tokens that an example can have; 0 for images."""


@dataclass(frozen=True)
class View:
    """What the server may look at when it selects a cohort.

    Frozen; rows are sorted by device id.
    """

    round: int
    devices: NDArray[np.str_]
    activity: NDArray[np.int64]
    """Public activity: examples per device as `data.activity_public` gives it."""
    reachable: NDArray[np.bool_]
    participation: NDArray[np.int64]
    """Rounds in which each device has been selected so far."""
    period: int = 1
    """The period of the stream in which the round lies, from 1; activity is that of this period."""
    rounds: int = 1
    """Rounds of the whole run."""
    availability: NDArray[np.float64] | None = None
    """The share of the day in which each device is in reach; None where it is not known."""
    losses: NDArray[np.float64] | None = None
    """Each device's last known mean training loss, NaN before the first.

    None where rounds do not ask for losses.
    """
    privacy_cap: NDArray[np.float64] | float | None = None
    """The largest inclusion probability within `dp.target_epsilon`; None where it is not known."""


@dataclass(frozen=True)
class Cohort:
    """The devices of a round, sorted by id, with each device's chance of being in it."""

    round: int
    devices: NDArray[np.str_]
    probabilities: NDArray[np.float64] | None
    """Inclusion probabilities, aligned with `devices`; None where they are not known exactly."""
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Each device's public weight in the sum of updates."""
    period: int = 1
    """The period of the stream, which decides what the devices hold."""
    clip_norm: float = 0.0
    """Bound on a device's whole change; 0 = none."""
    survivors: int = 1
    """Honest answers, without the protected device's, that a secure sum's noise counts on."""

    def __len__(self) -> int:
        return len(self.devices)


@dataclass(frozen=True)
class Update:
    """A weighted sum of what devices learned, over one device or many.

    delta = local - global parameters, each times the device's weight, summed in float64.
    """

    delta: Params
    weight: float
    devices: int
    metrics: dict[str, float]
    """Sums over devices, as `loss_sum`, `examples` and `steps`."""

    def __add__(self, other: "Update") -> "Update":
        return Update(
            delta={name: self.delta[name] + other.delta[name] for name in self.delta},
            weight=self.weight + other.weight,
            devices=self.devices + other.devices,
            metrics={
                name: self.metrics.get(name, 0.0) + other.metrics.get(name, 0.0)
                for name in {**self.metrics, **other.metrics}
            },
        )

    @property
    def finite(self) -> bool:
        """Whether every number in it is finite: no NaN, no infinity."""
        figures = (self.weight, *self.metrics.values())
        return all(map(math.isfinite, figures)) and all(
            bool(d.isfinite().all()) for d in self.delta.values()
        )

    @property
    def norm(self) -> float:
        """The L2 norm of delta, over all parameters together."""
        return math.sqrt(sum(float(d.double().square().sum()) for d in self.delta.values()))


@dataclass(frozen=True)
class Asked:
    """What a node shall answer beyond the sum of its devices' updates."""

    single: bool = False
    """One update for each device in place of the sum."""
    figures: bool = False
    """The metrics of each device, as its training loss, beside their sum."""


@dataclass(frozen=True)
class Reply:
    """What a node answers to a task: the sum of its devices' updates, or each of them."""

    round: int
    devices: NDArray[np.str_]
    """The devices that the update covers."""
    update: Update
    """The sum over the node's devices.

    Where `single`, delta has one row for each device, [devices, ...], unweighted float32.
    """
    single: bool = False
    figures: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """The metrics of each device, aligned with `devices`, where asked for; else empty."""
    rejected: Mapping[DeviceId, str] = field(default_factory=dict)
    """Devices whose update the node itself left out, and why."""


def no_update(params: Params) -> Update:
    """Return the sum over no devices: the zero of `+`."""
    zero = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in params.items()}
    return Update(delta=zero, weight=0.0, devices=0, metrics={})


@dataclass(frozen=True)
class Snapshot:
    """The state of a run that evaluators look at."""

    round: int
    params: Params


Evaluator = Callable[[Snapshot], dict[str, float]]
"""Measures a snapshot; accuracy, attacks and fairness all have this shape."""


Evaluate = Callable[[Examples], dict[str, float]]


@dataclass(frozen=True)
class Announcement:
    """The devices that a node hosts, and their public activity."""

    devices: NDArray[np.str_]
    activity: NDArray[np.int64]
    real: bool = False
    """Whether the node holds data of its own; its default noise then is not seeded."""
