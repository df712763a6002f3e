"""Packing uneven devices into one batch: chunks of similar size, padded rows, few table rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.batches import Schedule
from fedsim.privacy.local_plan import LocalPlan
from fedsim.seeds import Name
from fedsim.types import PAD, DeviceId, Examples, Params, same_width, trim

BYTES = 4  # float32


@dataclass(frozen=True)
class Work:
    """One device's part in a round."""

    examples: Examples
    weight: float
    schedule: Schedule
    key: int
    """The key of this device's dropout in this round."""
    device: DeviceId = ""
    plan: LocalPlan | None = None
    """Its local steps under example-level DP."""

    @property
    def steps(self) -> int:
        return len(self.schedule.rows)


@dataclass(frozen=True)
class Chunk:
    """K devices side by side, most local steps first: those still at work are a prefix."""

    fields: dict[str, Tensor]
    """Examples [K, n, ...], padded to the largest device."""
    rows: Tensor
    """Row numbers of each step's batch [K, steps, slots, size]."""
    mask: Tensor
    """Which of them are real [K, steps, slots, size]."""
    sizes: list[int]
    """The largest slot of each step."""
    active: list[int]
    """Devices at work in each step."""
    weights: Tensor
    """[K], float64."""
    keys: Tensor
    """[K], int64."""
    table_rows: dict[str, Tensor]
    """For each table that is read by ids: the rows that each device holds, [K, rows]."""
    table_counts: dict[str, Tensor]
    """How many of these rows are real [K]; the others are filling."""
    works: list[Work]
    names: tuple[Name, ...]
    """Attempt and round: every key of this chunk's noise begins with these."""

    def rows_of(self, step: int) -> Tensor:
        """Return the row numbers of a step's batches, [devices at work, B]."""
        return self.rows[: self.active[step], step, :, : self.sizes[step]].flatten(1)


def plan_chunks(
    costs: Sequence[int], limit: int, steps: Sequence[int] = (), workers: int = 1
) -> list[list[int]]:
    """Return chunks of devices, most local steps first, each within `limit` bytes.

    A chunk takes (number of devices × cost of its largest device). With several workers no chunk
    has more than one worker's share of all steps, so that each worker has something to do. A device
    over the limits is a chunk of its own. The result is a pure function of sizes, limit and
    workers.
    """
    steps = steps or [1] * len(costs)
    share = sum(steps) / workers
    chunks: list[list[int]] = []
    dearest = taken = 0
    for device in sorted(range(len(costs)), key=lambda i: (-steps[i], -costs[i], i)):
        over = max(dearest, costs[device]) * (len(chunks[-1]) + 1) > limit if chunks else True
        if over or (workers > 1 and taken + steps[device] > share):
            chunks.append([])
            dearest = taken = 0
        chunks[-1].append(device)
        dearest = max(dearest, costs[device])
        taken = taken + steps[device]
    return chunks


def pack(
    works: Sequence[Work],
    tables: Mapping[str, str],
    device: torch.device,
    names: tuple[Name, ...] = (),
) -> Chunk:
    """Return the works of a chunk stacked, most local steps first.

    `tables` maps a table parameter to the field of ids that reads it.
    """
    works = sorted(works, key=lambda work: -work.steps)
    wide = same_width([w.examples for w in works])
    fields = {
        name: torch.nn.utils.rnn.pad_sequence([e.fields[name] for e in wide], batch_first=True)
        for name in wide[0].fields
    }
    fields = trim(fields)
    table_rows = {}
    table_counts = {}
    for table, field in tables.items():
        table_rows[table], table_counts[table], fields[field] = _compact(fields[field])
    steps, slots = works[0].schedule.rows.shape[:2]
    size = max(w.schedule.rows.shape[2] for w in works)
    rows = np.zeros((len(works), steps, slots, size), dtype=np.int64)
    mask = np.zeros(rows.shape, dtype=bool)
    for k, work in enumerate(works):
        s, _, b = work.schedule.rows.shape
        rows[k, :s, :, :b] = work.schedule.rows
        mask[k, :s, :, :b] = work.schedule.mask
    return Chunk(
        fields={name: f.to(device) for name, f in fields.items()},
        rows=torch.from_numpy(rows).to(device),
        mask=torch.from_numpy(mask).to(device),
        sizes=(mask.any((0, 2)) * np.arange(1, size + 1)).max(1).clip(1).tolist(),
        active=[sum(w.steps > step for w in works) for step in range(steps)],
        weights=torch.tensor([w.weight for w in works], dtype=torch.float64, device=device),
        keys=torch.tensor([w.key for w in works], device=device),
        table_rows={name: r.to(device) for name, r in table_rows.items()},
        table_counts={name: c.to(device) for name, c in table_counts.items()},
        works=list(works),
        names=names,
    )


def device_cost(
    params: Params, tables: Mapping[str, str], examples: Examples, copies: int, activations: int = 0
) -> int:
    """Return the bytes that a device takes.

    These are its parameters, `copies` times, with only the table rows that it reads, and
    `activations`, the number of floats that its forward and backward hold.
    """
    count = 0
    for name, p in params.items():
        if name in tables:
            ids = examples.fields[tables[name]]
            count += min(len(p), ids.numel()) * p[0].numel()
        else:
            count += p.numel()
    return (count * copies + activations) * BYTES


def _compact(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct ids of each device [K, rows], their counts [K], and `ids` as positions.

    PAD comes first. Rows are filled up with PAD; nothing reads the filling, so it never changes.
    """
    flat = np.pad(ids.flatten(1).numpy(), ((0, 0), (1, 0)), constant_values=PAD)
    bits = flat.shape[1].bit_length()
    both = (flat << bits) | np.arange(
        flat.shape[1]
    )  # id and place in one number: the fastest to sort
    both.sort(axis=1)
    found = both >> bits
    places = both & ((1 << bits) - 1)
    ranks = np.zeros_like(found)
    np.cumsum(found[:, 1:] != found[:, :-1], axis=1, out=ranks[:, 1:])
    counts = ranks[:, -1] + 1
    rows = np.full((len(ids), counts.max()), PAD)
    positions = np.empty_like(ranks)
    np.put_along_axis(rows, ranks, found, axis=1)
    np.put_along_axis(positions, places, ranks, axis=1)
    return (
        torch.from_numpy(rows),
        torch.from_numpy(counts),
        torch.from_numpy(positions[:, 1:]).reshape(ids.shape),
    )
