"""A sweep's folder, `<out>/<name>`: `sweep.json` holds plan and errors; the runs lie below."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from fedsim.app.rundir.files import make_folder, read_json, write_json, write_text
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.rundir.runs_table import frame_of
from fedsim.app.sweeps.grid import Member
from fedsim.app.sweeps.pareto import AXIS
from fedsim.config import Config, from_flat, to_flat, to_toml
from fedsim.errors import WrongInput


@dataclass(frozen=True)
class SweepDir:
    """The folder of a sweep."""

    path: Path

    @property
    def exists(self) -> bool:
        return (self.path / "sweep.json").is_file()

    @property
    def plan(self) -> dict[str, Any]:
        """Return the plan of `write_plan`, with the errors written since."""
        return read_json(self.path / "sweep.json")

    @property
    def axes(self) -> list[str]:
        """Return the columns of `frame` that name a setting."""
        return [AXIS + name for name in self.plan["axes"]]

    @property
    def log(self) -> Path:
        """The file that receives the output of the runs."""
        return self.path / "workers.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep for this process. Raises WrongInput when another process holds it."""
        make_folder(self.path)
        try:
            with FileLock(self.path / "lock", timeout=0):
                yield
        except Timeout:
            raise WrongInput(
                f"another process is working on {self.path}; wait for it, or end it"
            ) from None

    def write_plan(self, metric: str, axes: Sequence[str], runs: Sequence[Member]) -> None:
        """Write the planned runs; earlier errors stay until a run is tried again."""
        before = (
            {(row["hash"], row["seed"]): row["error"] for row in self.plan["runs"]}
            if self.exists
            else {}
        )
        rows = [
            {
                "where": member.where,
                "seed": member.config.seed,
                "hash": member.config.hash,
                "error": before.get((member.config.hash, member.config.seed), ""),
            }
            for member in runs
        ]
        plan = {
            "schema": 1,
            "command": sys.argv,
            "metric": metric,
            "axes": list(axes),
            "runs": rows,
        }
        write_json(self.path / "sweep.json", plan)

    def write_error(self, number: int, error: str) -> None:
        """Record how the run with this number in the plan ended: "" or a sentence."""
        plan = self.plan
        plan["runs"][number]["error"] = error
        write_json(self.path / "sweep.json", plan)

    def remembered(
        self, calibrate: Callable[[Config, float], Config]
    ) -> Callable[[Config, float], Config]:
        """Return a `calibrate` that stores its slow results in `calibrations.json`."""
        path = self.path / "calibrations.json"
        known = read_json(path) if path.is_file() else {}

        def remember(config: Config, epsilon: float) -> Config:
            key = f"{config.hash} {epsilon!r}"
            if key not in known:
                known[key] = calibrate(config, epsilon).dp.noise_multiplier
                make_folder(self.path)
                write_json(path, known)
            return from_flat(to_flat(config) | {"dp.noise_multiplier": known[key]})

        return remember

    def config_file(self, member: Member) -> Path:
        """Write the whole config of a run, for the process that will do it; return the file."""
        folder = self.path / "configs"
        make_folder(folder)
        path = folder / f"{member.config.hash}-seed={member.config.seed}.toml"
        write_text(path, to_toml(member.config))
        return path

    def run_of(self, row: Mapping[str, Any]) -> RunDir:
        """Return the folder of a run of the plan."""
        return RunDir(self.path / row["hash"] / f"seed={row['seed']}")

    def frame(self) -> pd.DataFrame:
        """Return `load_runs` of the plan's started runs, with a column for each axis."""
        begun = [row for row in self.plan["runs"] if self.run_of(row).exists]
        if not begun:
            return pd.DataFrame({"status": pd.Series(dtype=str), "hash": pd.Series(dtype=str)})
        frame = frame_of([self.run_of(row) for row in begun])
        for axis in self.plan["axes"]:
            frame[AXIS + axis] = [row["where"][axis] for row in begun]
        return frame

    def failed(self) -> dict[str, str]:
        """Return run -> sentence, for the runs whose last try failed."""
        return {named(row): row["error"] for row in self.plan["runs"] if row["error"]}


def named(row: Mapping[str, Any]) -> str:
    """Return a run of a plan in words."""
    return ", ".join(
        [*(f"{axis} {label}" for axis, label in row["where"].items()), f"seed {row['seed']}"]
    )
