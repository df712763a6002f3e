"""The model as a chunk of devices runs it: stacked where it can be, else one device at a time."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fedsim.models.dropout import Dropout, set_dropout_keys
from fedsim.models.layers import STACKABLE
from fedsim.models.tasks import Task
from fedsim.types import Params


class LocalModel:
    """A module, its task and the precision of its forward; `draws` says whether it is random."""

    def __init__(
        self, module: nn.Module, task: Task, precision: str = "fp32", alone: bool = False
    ) -> None:
        self.module = module
        self.task = task
        self.precision = precision
        self.stacked = is_stackable(module) and not alone
        self.draws = any(
            isinstance(m, Dropout) and m.p for m in module.modules()
        ) or not draws_by_keys(module)
        self.place = next(module.parameters()).device
        self.tables: Mapping[str, str] = getattr(module, "tables", {}) if self.stacked else {}

    def twin(self) -> "LocalModel":
        """Return a copy with its own module, for another thread."""
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module)
        return other

    def inputs(self, batch: Params) -> tuple[Tensor, ...]:
        """Return the fields that the module reads, [K, B, ...], or [B, ...] where not stacked."""
        fields = tuple(batch[name] for name in self.task.inputs)
        return fields if self.stacked else tuple(field[0] for field in fields)

    def targets(self, batch: Params) -> tuple[Tensor, ...]:
        """Return all fields of the batch in the order of their names, shaped as `inputs`."""
        fields = tuple(batch[name] for name in sorted(batch))
        return fields if self.stacked else tuple(field[0] for field in fields)

    def losses(self, names: Iterable[str]) -> Callable[..., Tensor]:
        """Return losses(outputs, *targets) -> each example's loss, [K, B] or [B].

        `names` are the fields that the targets hold.
        """
        order = sorted(names)
        return lambda outputs, *targets: self.task.losses(
            full_precision(outputs), dict(zip(order, targets, strict=True))
        )

    def params(self, params: Params) -> Params:
        """Return stacked parameters as the module takes them."""
        return params if self.stacked else {name: p[0] for name, p in params.items()}

    @contextmanager
    def arithmetic(self, keys: Tensor, step: int, rows: Tensor | None = None) -> Iterator[None]:
        """Set the keys of this step's dropout and the precision of the forward.

        `keys` name devices, `rows` name examples.
        """
        set_dropout_keys(self.module, keys, step, self.stacked, rows)
        autocast = torch.autocast(self.place.type, torch.bfloat16, enabled=self.precision == "bf16")
        if draws_by_keys(self.module):
            with autocast:
                yield
            return
        with torch.random.fork_rng(devices=[]), autocast:  # a seed for these devices and this step
            torch.manual_seed((int(keys[0]) + step) % 2**62)
            yield


def draws_by_keys(module: nn.Module) -> bool:
    """Whether all random draws of the module come from keys.

    Modules of fedsim do so, and so do custom modules that say `keyed = True`.
    """
    known = ("fedsim.models.", "torch.nn.modules.")
    return bool(getattr(module, "keyed", False)) or all(
        type(layer).__module__.startswith(known) and not isinstance(layer, _DropoutNd)
        for layer in module.modules()
    )


def full_precision(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs in at least float32, so that the losses are exact."""
    half = (torch.bfloat16, torch.float16)
    return {name: o.float() if o.dtype in half else o for name, o in outputs.items()}


def is_stackable(module: nn.Module) -> bool:
    """Whether every layer that owns parameters takes them with a leading device axis.

    A model with torch's own Dropout is not stacked, because that draws from one stream for all
    devices.
    """
    return all(
        isinstance(layer, STACKABLE)
        or (
            not isinstance(layer, _DropoutNd)
            and next(layer.parameters(recurse=False), None) is None
        )
        for layer in module.modules()
    )
