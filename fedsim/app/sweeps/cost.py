"""The time that a sweep will take, estimated from finished runs of the same base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fedsim.app.rundir.run_dir import RunDir, find_runs
from fedsim.config import Config
from fedsim.errors import WrongInput


@dataclass(frozen=True)
class Cost:
    """Seconds that finished runs took, by device and round."""

    setup_s: float
    device_s: float
    """Seconds for one device in one round, evaluation included."""
    runs: int

    def seconds(self, config: Config) -> float:
        """Return the estimated seconds for one run, without audits and centralised reference."""
        return self.setup_s + self.device_s * config.train.rounds * config.selection.cohort


def known_cost(out: Path, names: Sequence[str]) -> Cost | None:
    """Return the cost from finished runs with these names in the output folder, if any."""
    found = [run for name in names for run in find_runs(out / name) if run.summary is not None]
    measured = [cost for cost in (_measured(run) for run in found) if cost is not None]
    if not measured:
        return None
    setup, device = zip(*measured, strict=True)
    return Cost(median(setup), median(device), len(measured))


def _measured(run: RunDir) -> tuple[float, float] | None:
    try:
        config = run.config
        summary = run.summary
        rounds = run.rounds()
    except WrongInput:  # its version has other keys
        return None
    devices = sum(done.devices for done in rounds)
    if summary is None or not devices or config.train.rounds != len(rounds):
        return None
    seconds = sum(done.time_train_s + done.time_evaluate_s for done in rounds)
    return summary["time"]["setup_s"], seconds / devices
