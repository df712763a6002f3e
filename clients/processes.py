"""Lanes in processes: they start slowly, but do not wait for one another as Python's threads do.

A process is started afresh, because a fork would copy torch's threads in an unknown state. It gets
its work through a pipe and ends when the pipe closes. Parameters and sums lie in shared memory that
has no name in any file system.
"""

import io
import mmap
import os
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from clients.chunk import Assignment, Attempt, Lane
from clients.table_noise import Summed
from fedsim.errors import RunFailed
from fedsim.types import Params, Update

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ARRAYS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64)
Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class RemoteLane:
    """A lane in its own process, which starts when it is first needed."""

    def __init__(self, lane: Lane) -> None:
        self._spec = _dump(lane)
        self._start: Params | None = None

    def train(
        self, start: Params, assigned: Sequence[Assignment], attempt: Attempt
    ) -> tuple[Update, Summed]:
        """Train as `Lane.train` does.

        Raises the error that was raised there, or RunFailed where the process has ended.
        """
        if self._start is None:
            self._launch(start)
        if start is not self._start:
            for name, p in self._memory.params.items():
                assert p.dtype == start[name].dtype, (
                    f"{name} was {p.dtype} and is {start[name].dtype}"
                )
                p.copy_(start[name])
            self._start = start
        try:
            self._pipe.send_bytes(_dump((assigned, attempt)))
            answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            answer = self._last_words()
        if isinstance(answer, BaseException):
            raise answer
        update, left = answer
        return replace(
            update, delta={name: d.clone() for name, d in self._memory.sums.items()}
        ), left

    def _last_words(self) -> BaseException:
        """Return the error that a process sent before it ended, or one that says how it ended.

        The next chunk starts another process.
        """
        said = code = self._start = None
        with suppress(EOFError, OSError):
            if self._pipe.poll():
                said = pickle.loads(self._pipe.recv_bytes())
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=5)
        self._leave()
        if isinstance(said, BaseException):
            return said
        return RunFailed(
            f"a training process ended with exit code {code}; too little memory is a usual "
            'reason: lower place.threads, or use place.lanes = "threads"'
        )

    def _launch(self, start: Params) -> None:
        shapes: Shapes = {name: (p.dtype, tuple(p.shape)) for name, p in start.items()}
        shared = os.memfd_create("fedsim")
        os.ftruncate(shared, _Memory.size(shapes))
        self._pipe, theirs = Pipe()
        given = (theirs.fileno(), shared)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "clients.processes",
                *map(str, given),
            ],  # -P: nothing of this folder
            pass_fds=given,
            env=os.environ
            | dict.fromkeys(THREAD_VARIABLES, "1")
            | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        self._leave = weakref.finalize(self, _end, self._pipe, self._process)
        theirs.close()
        self._memory = _Memory(shared, shapes)
        with suppress(
            OSError
        ):  # the first call that waits for an answer notices a process that has ended
            self._pipe.send_bytes(self._spec)
            self._pipe.send_bytes(pickle.dumps(shapes))


class _Memory:
    """Memory that two processes share: parameters go in, sums in float64 come out."""

    def __init__(self, file: int, shapes: Shapes) -> None:
        """Map the file, and close its descriptor."""
        whole = mmap.mmap(file, self.size(shapes))
        os.close(file)
        self.params, at = _views(whole, shapes, 0)
        self.sums, _ = _views(
            whole, {n: (torch.float64, shape) for n, (_, shape) in shapes.items()}, at
        )

    @staticmethod
    def size(shapes: Shapes) -> int:
        return sum(2 * _room(torch.float64, shape) for _, shape in shapes.values())


def _views(whole: mmap.mmap, shapes: Shapes, at: int) -> tuple[Params, int]:
    """Return tensors that lie in `whole` from byte `at` on, and the first byte after them."""
    found = {}
    for name, (dtype, shape) in shapes.items():
        count = torch.Size(shape).numel()
        flat = (
            torch.frombuffer(whole, dtype=dtype, count=count, offset=at)
            if count
            else torch.empty(0)
        )
        found[name] = flat.view(shape)
        at += _room(dtype, shape)
    return found, at


def _room(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor, rounded up to a cache line."""
    return -(-torch.Size(shape).numel() * dtype.itemsize // 64) * 64


def can_travel(lane: Lane) -> bool:
    """Whether a new process could load the lane.

    It cannot load classes that a script or a notebook defines. The system must also have memory
    without a file name, as Linux has.
    """
    try:
        return hasattr(os, "memfd_create") and b"__main__" not in _dump(lane)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False


class _Pickler(pickle.Pickler):
    """Writes tensors as arrays, which is much faster than torch's own way."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.dtype in ARRAYS and not value.requires_grad:
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _dump(value: Any) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol=5).dump(value)
    return out.getvalue()


def _end(pipe: Connection, process: "subprocess.Popen[bytes]") -> None:
    pipe.close()
    process.terminate()  # it holds nothing that could be lost
    process.wait()


def main(pipe: Connection, file: int) -> None:
    """Train the chunks that come through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):
        try:
            lane: Lane = pickle.loads(pipe.recv_bytes())
            memory = _Memory(file, pickle.loads(pipe.recv_bytes()))
            while True:
                pipe.send_bytes(_answer(lane, memory, *pickle.loads(pipe.recv_bytes())))
        except (AttributeError, ImportError, pickle.UnpicklingError) as error:
            pipe.send_bytes(_told(error))


def _answer(lane: Lane, memory: _Memory, assigned: Sequence[Assignment], attempt: Attempt) -> bytes:
    try:
        update, left = lane.train(memory.params, assigned, attempt)
    except Exception as error:
        return _told(error)
    for name, d in update.delta.items():
        memory.sums[name].copy_(d)
    return _dump((replace(update, delta={}), left))


def _told(error: Exception) -> bytes:
    """Return an error as bytes, with its traceback in a note.

    An error that cannot be pickled becomes a RunFailed with the same text.
    """
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(_dump(error))
    except Exception:
        return _dump(RunFailed(f"{type(error).__name__}: {error}"))
    return _dump(error)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
