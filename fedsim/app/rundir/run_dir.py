"""A run's folder: config, manifest, rows, checkpoints, summary. These files hold the truth.

A kill at any moment loses at most the current round. Rows are appended, and a resume cuts them back
to the last checkpoint. All other files are written under another name and then renamed.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import nn

from fedsim.app.rundir.files import Row, make_folder, read_json, replaced, write_json, write_text
from fedsim.app.rundir.round_record import Round
from fedsim.config import Config, load, to_toml
from fedsim.errors import WrongInput
from fedsim.models import build_model
from fedsim.types import Params, Spec

ASIDE = ".before-"
"""Part of the name of a folder that holds a run set aside by `--fresh`."""


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a round: named tensors, without any source of randomness."""

    round: int
    params: Params
    aggregator: Params
    participation: NDArray[np.int64]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class RunDir:
    """`<out>/<name>/<hash8>/seed=<n>`.

    >>> from fedsim import Config, RunDir
    >>> run = RunDir.of(Config(name="mine", seed=3))
    >>> run.path.as_posix()
    'runs/mine/c9dca300/seed=3'
    >>> run.exists
    False
    """

    path: Path

    @staticmethod
    def of(config: Config) -> "RunDir":
        name = config.name or "unnamed"
        return RunDir(Path(config.place.out) / name / config.hash / f"seed={config.seed}")

    @property
    def exists(self) -> bool:
        return (self.path / "manifest.json").is_file()

    @property
    def config(self) -> Config:
        return load(self.path / "config.toml")

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / "manifest.json")

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, else None."""
        path = self.path / "summary.json"
        return read_json(path) if path.is_file() else None

    def model(self) -> nn.Module:
        """Return the model of the last checkpoint, on the CPU and in evaluation mode.

        Raises WrongInput before the first checkpoint.
        """
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            raise WrongInput(f"{self.path} has no checkpoint yet; run the experiment first")
        config = self.config
        module = build_model(self.spec, config.model, config.seed)
        module.load_state_dict(checkpoint.params, strict=False)
        return module.eval()

    @property
    def spec(self) -> Spec:
        """Return the spec of the run's examples: words, labels, tags, sizes."""
        kept: dict[str, Any] = read_json(self.path / "spec.json")
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()
        }
        return Spec(**fields)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. Raises WrongInput when another process holds it."""
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        make_folder(self.path)
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise WrongInput(
                f"another process is working on {self.path}; wait for it, or end it"
            ) from None
        try:
            yield
        finally:
            self._remove_if_empty(made)
            lock.release()

    def create(
        self,
        config: Config,
        manifest: Mapping[str, Any],
        spec: Spec,
        devices: NDArray[np.str_],
        activity: NDArray[np.int64],
    ) -> None:
        """Write the files known before the first round. The manifest comes last and makes it a run.

        `activity` is the devices' public activity over all periods.
        """
        write_text(self.path / "config.toml", to_toml(config))
        write_json(self.path / "spec.json", asdict(spec))
        with replaced(self.path / "devices.npz") as path, path.open("wb") as stream:
            np.savez_compressed(stream, devices=devices, activity=activity)
        self.write_manifest(manifest)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_json(self.path / "manifest.json", manifest)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)

    def set_aside(self) -> Path | None:
        """Move a run or its remains to a folder beside it; return that folder, if any."""
        entries = [entry for entry in self.path.iterdir() if entry.name != "lock"]
        if not entries:
            return None
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = self.path.with_name(f"{self.path.name}{ASIDE}{stamp}")
        aside.mkdir()
        # summary first, manifest last: after a kill on the way, the run begins anew
        last = {"summary.json": 0, "checkpoints": 1, "manifest.json": 3}
        for entry in sorted(entries, key=lambda entry: last.get(entry.name, 2)):
            os.replace(entry, aside / entry.name)
        return aside

    def rows(self, name: str = "rounds.jsonl") -> list[Row]:
        """Return the rows of a file of JSON lines; an incomplete last line is left out."""
        path = self.path / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rounds(self) -> list[Round]:
        """Return the records of the finished rounds."""
        return [Round.of(row) for row in self.rows()]

    def append_row(self, row: Row, name: str = "rounds.jsonl") -> None:
        with (self.path / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def rewrite_rows(self, rows: Sequence[Row], name: str) -> None:
        """Replace the rows of a file with these, completely or not at all."""
        write_text(
            self.path / name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        )

    def cut_rows(self, round: int, name: str = "rounds.jsonl") -> None:
        """Keep only complete rows up to `round`; the rounds after the checkpoint will run again."""
        if (self.path / name).exists():
            self.rewrite_rows([row for row in self.rows(name) if row["round"] <= round], name)

    def write_checkpoint(self, checkpoint: Checkpoint, keep: str) -> None:
        """Write the state after a round; `keep = "last"` deletes the earlier ones."""
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        arrays = {f"params/{n}": p.cpu().numpy() for n, p in checkpoint.params.items()}
        arrays |= {f"aggregator/{n}": p.cpu().numpy() for n, p in checkpoint.aggregator.items()}
        arrays |= {"participation": checkpoint.participation, "losses": checkpoint.losses}
        arrays |= {"round": np.array(checkpoint.round)}
        with (
            replaced(folder / f"round-{checkpoint.round:06d}.npz") as path,
            path.open("wb") as stream,
        ):
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        if keep == "last":
            for old in self._checkpoints()[:-1]:
                old.unlink()

    def last_checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None before the first."""
        found = self._checkpoints()
        return _read_checkpoint(found[-1]) if found else None

    def checkpoint(self, round: int) -> Checkpoint | None:
        """Return the state after a round, or None if it was not kept."""
        path = self.path / "checkpoints" / f"round-{round:06d}.npz"
        return _read_checkpoint(path) if path.is_file() else None

    def kept_rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint."""
        return [int(path.stem.removeprefix("round-")) for path in self._checkpoints()]

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("round-*.npz"))

    def _remove_if_empty(self, made: Sequence[Path]) -> None:
        """Remove the folders just `made` for a run that never began, innermost first."""
        if self.exists or not made or {entry.name for entry in self.path.iterdir()} > {"lock"}:
            return
        shutil.rmtree(self.path)
        for folder in made[1:]:
            if any(folder.iterdir()):
                return
            folder.rmdir()


def find_runs(out: Path) -> list[RunDir]:
    """Return the runs below a folder in the order of their paths, without those set aside."""
    found = [RunDir(path.parent) for path in sorted(out.glob("**/manifest.json"))]
    return [run for run in found if ASIDE not in run.path.name]


def open_run(path: Path) -> RunDir:
    """Return the run in a folder. Raises WrongInput unless there is exactly one."""
    run = RunDir(path)
    if run.exists:
        return run
    below = find_runs(path) if path.is_dir() else []
    if len(below) == 1:
        return below[0]
    if not below:
        raise WrongInput(f"{str(path)!r} holds no run; `fedsim runs` lists those that there are")
    raise WrongInput(
        f"{str(path)!r} holds {len(below)} runs; name one, as in {str(below[0].path)!r}"
    )


def _read_checkpoint(path: Path) -> Checkpoint:
    with np.load(path, allow_pickle=False) as arrays:
        tensors = {name: arrays[name] for name in arrays.files}
    return Checkpoint(
        round=int(tensors.pop("round")),
        participation=tensors["participation"],
        losses=tensors.get("losses", np.full(len(tensors["participation"]), np.nan)),
        params=_under("params/", tensors),
        aggregator=_under("aggregator/", tensors),
    )


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Params:
    return {
        name.removeprefix(prefix): torch.from_numpy(a)
        for name, a in arrays.items()
        if name.startswith(prefix)
    }


def found_runs(path: Path) -> list[RunDir]:
    """Return the run in a folder, or all runs below it. Raises WrongInput if there is none."""
    found = [RunDir(path)] if RunDir(path).exists else find_runs(path)
    if not found:
        raise WrongInput(f"{str(path)!r} holds no run; `fedsim runs` lists those that there are")
    return found
