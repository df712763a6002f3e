"""Runs as one flat table with a row for each, for people and notebooks that compare runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.app.rundir.files import Row
from fedsim.app.rundir.run_dir import RunDir, find_runs
from fedsim.audit.findings import (
    Canary,
    Finding,
    LowerBound,
    Membership,
    from_row,
    smallest_is_best,
)
from fedsim.config import Config, to_flat
from fedsim.errors import WrongInput

ALWAYS = ("selection.rule", "stream.mode", "dp.unit")
"""Settings that are always in the table; a Pareto view groups the runs by them."""
ATTACK_AUC = "attacks.membership.auc.best"
EXPOSURE = "attacks.canary.exposure_mean.best"
AUDITED_EPSILON = "attacks.audit.epsilon_low.best"
"""These three names are columns that pages and sweeps use."""


def load_runs(path: str | Path) -> pd.DataFrame:
    """Return a table with a row for each run in a folder or below it, finished or not.

    - `path`, `name`, `hash`, `seed`, `status`, `rounds`
    - each setting that differs between the runs, under its dotted key
    - `metrics.*`, `reference.*`, `privacy.*`, `time.*` as in summary.json
    - for each number in the rows of `attacks.membership | canary | audit`, the strongest and the
      mean, such as `attacks.membership.auc.best` and `.mean`; rows that certify nothing are left
      out

    A value that a run lacks is missing in the table. Raises WrongInput if there is no run.

    >>> from fedsim import load_runs, run
    >>> small = {"data.devices": 20, "data.examples": 200}
    >>> small |= {"model.embedding": 8, "selection.cohort": 5}
    >>> for rate in (0.1, 0.2):
    ...     done = run(small | {"train.rounds": 2, "train.lr": rate})
    >>> sorted(load_runs("runs")["train.lr"])
    [0.1, 0.2]
    """
    folder = Path(path)
    found = [RunDir(folder)] if RunDir(folder).exists else find_runs(folder)
    if not found:
        raise WrongInput(f"{str(path)!r} holds no run; `fedsim runs` lists those that there are")
    return frame_of(found)


def frame_of(runs: Sequence[RunDir]) -> pd.DataFrame:
    """Return the table of these runs, in their order."""
    configs = [run.config for run in runs]
    keys = differing(configs)
    rows = [
        _identity(run, config) | {key: to_flat(config)[key] for key in keys} | _figures(run)
        for run, config in zip(runs, configs, strict=True)
    ]
    return pd.DataFrame(rows)


def differing(configs: Sequence[Config]) -> list[str]:
    """Return the settings that differ between configs and change results, and those of `ALWAYS`."""
    flat = [to_flat(config) for config in configs]
    return [
        key
        for key in to_flat(Config())
        if key in ALWAYS
        or (
            key not in ("name", "seed")
            and not key.startswith("place.")
            and len({str(each[key]) for each in flat}) > 1
        )
    ]


def _identity(run: RunDir, config: Config) -> Row:
    return {
        "path": str(run.path),
        "name": config.name,
        "hash": config.hash,
        "seed": config.seed,
        "status": (run.summary or {"status": "unfinished"})["status"],
        "rounds": len(run.rows()),
    }


def _figures(run: RunDir) -> Row:
    summary = run.summary
    if summary is None:
        return {}
    parts = {
        "metrics": summary["metrics"],
        "reference": summary["reference"].get("centralised", {}),
        "privacy": summary["privacy"],
        "time": summary["time"],
    }
    flat = {
        f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()
    }
    for kind, rows in summary["attacks"].items():
        found = [from_row(row, kind) for row in rows]
        certified = [row for row, each in zip(rows, found, strict=True) if not _is_estimate(each)]
        flat |= {f"attacks.{kind}.{key}": value for key, value in strongest(certified).items()}
        flat |= _highest(found)
    return flat


def _is_estimate(finding: Finding | None) -> bool:
    """Return whether a finding certifies nothing."""
    return isinstance(finding, LowerBound) and finding.estimate


def _highest(findings: Sequence[Finding | None]) -> dict[str, float]:
    """Return the columns that pages and sweeps use; a column without findings is absent."""
    bounds = [f for f in findings if isinstance(f, LowerBound) and not f.estimate]
    each = {
        ATTACK_AUC: [f.figures.area.auc for f in findings if isinstance(f, Membership)],
        EXPOSURE: [f.figures.exposure_mean for f in findings if isinstance(f, Canary)],
        AUDITED_EPSILON: [f.epsilon_low for f in bounds],
    }
    return {column: max(values) for column, values in each.items() if values}


def strongest(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the strongest, `<key>.best`, and mean, `<key>.mean`, of each number in attack rows."""
    found: dict[str, float] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        numbers = [float(row[key]) for row in rows if _is_number(row.get(key))]
        if numbers:
            best = min if key in smallest_is_best() else max
            found |= {f"{key}.best": best(numbers), f"{key}.mean": sum(numbers) / len(numbers)}
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
