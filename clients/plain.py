"""Gradients of a local step without privacy: the mean over each device's batch."""

import torch
from torch import Tensor
from torch.func import functional_call

from clients.layer_records import Lookup, Pooled
from clients.packing import Chunk
from clients.rows import Grads, Rows
from clients.stacked_model import LocalModel
from clients.tape import Tape, recording
from fedsim.types import Params


class PlainGradients:
    """Gradients of the mean losses in one forward and one backward; tables give only read rows."""

    def __init__(self, local: LocalModel) -> None:
        self.local = local

    def __call__(
        self, params: Params, batch: Params, mask: Tensor, chunk: Chunk, step: int
    ) -> tuple[Grads, Tensor]:
        """Return the gradients [K, ...] and the losses [K, B].

        Losses are zero where `mask` [K, slots, size] is false.
        """
        real = mask.flatten(1)
        rows_only = frozenset(self.local.tables)
        tape = Tape(len(real), real.shape[1], self.local.stacked, real.device)
        leaves = {n: p.detach().requires_grad_(n not in rows_only) for n, p in params.items()}
        with (
            recording(self.local.module, tape, rows_only),
            self.local.arithmetic(chunk.keys[: len(mask)], step, chunk.rows_of(step)),
        ):
            outputs = functional_call(
                self.local.module, self.local.params(leaves), self.local.inputs(batch)
            )
        each = self.local.losses(batch)(outputs, *self.local.targets(batch))
        losses = each.view(real.shape) * real
        by_autograd = {n: leaf for n, leaf in leaves.items() if leaf.requires_grad}
        records, found = tape.backward(losses.sum(1) / real.sum(1), by_autograd)
        grads: dict[str, Tensor | Rows] = {
            # a parameter that forward does not use has no gradient
            n: found[n] if n in found else torch.zeros_like(p)
            for n, p in params.items()
            if n not in rows_only
        }
        for record in records:
            assert isinstance(record, Lookup | Pooled), "only tables are watched"
            grads[record.table] = record.rows()
        return {name: grads[name] for name in params}, losses.detach()
