"""Values that several sections read from a run's files."""

import shlex

from fedsim.app.rundir.files import Row, read_json
from fedsim.app.rundir.metrics import SHOWN, last_metrics, spent_by_round
from fedsim.app.rundir.run_dir import RunDir


def utility_of(rows: list[Row]) -> tuple[str, float] | None:
    """Return the run's first metric in [0, 1], with its last value."""
    metrics = last_metrics(rows)
    return next(((name, metrics[name]) for name in SHOWN if name in metrics), None)


def reference_of(run: RunDir) -> dict[str, float]:
    """Return the metrics of the centralised model; {} if none was trained."""
    found: dict[str, float] = (run.summary or {}).get("reference", {}).get("centralised", {})
    return found


def epsilon_by_round(run: RunDir) -> list[tuple[float, float]]:
    """Return (round, largest epsilon spent so far, by RDP); [] without DP.

    Rows of older runs lack it; their privacy statement gives it for some rounds.
    """
    found = spent_by_round(run.rows())
    path = run.path / "privacy.json"
    if not found and path.is_file():
        found = read_json(path)["rounds"]
    return [(float(round), float(epsilon)) for round, epsilon in found]


def repeating(run: RunDir) -> str:
    """Return the command that repeats the run from its own config."""
    nodes = run.manifest["plan"]["nodes"]
    several = f" --nodes {nodes}" if nodes > 1 else ""
    return f"fedsim run {shlex.quote(str(run.path / 'config.toml'))}{several} --fresh"
