"""Utility against privacy over a sweep: means over seeds, the frontier, the cheapest setting."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fedsim.app.rundir.files import make_folder, replaced
from fedsim.app.rundir.metrics import SHOWN
from fedsim.app.rundir.runs_table import ATTACK_AUC, AUDITED_EPSILON, EXPOSURE

ATTACKS = {
    "attack_auc": ATTACK_AUC,
    "exposure": EXPOSURE,
    "audited_epsilon": AUDITED_EPSILON,
}
"""Columns of the table -> those of `load_runs`."""
AXIS = "where."
"""Prefix of columns named after a sweep's axes; it separates them from measured columns."""
CONFIDENCE = 0.95


def pareto_table(runs: pd.DataFrame, axes: Sequence[str], metric: str = "") -> pd.DataFrame:
    """Return a row for each setting of finished runs, with 95 % t-intervals over its seeds.

    `axes` are columns of `runs` that name a setting. The result has these columns, `hash`, `rule`,
    `mode`, `unit`, `seeds`, `utility`, `attack_auc`, `exposure`, `audited_epsilon` (mean, `_low`,
    `_high`), `epsilon` (the largest guarantee, infinite without DP), `delta`, `seconds` (mean of a
    run), `frontier`.
    """
    done = runs[runs["status"] == "completed"]
    column = f"metrics.{metric or first_metric(done)}"
    rows = [_row(group, axes, column) for _, group in done.groupby("hash", sort=False)]
    table = pd.DataFrame(rows)
    if rows:
        table["frontier"] = frontier(table["utility"].to_numpy(), table["epsilon"].to_numpy())
    return table


def first_metric(runs: pd.DataFrame) -> str:
    """Return the metric that is the utility by default; "" if the runs have none."""
    return next((name for name in SHOWN if f"metrics.{name}" in runs), "")


def frontier(utility: NDArray[np.float64], epsilon: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each point is on the frontier: no other point is better.

    A better point is at least as good in utility and epsilon, and strictly better in one of them.
    """
    better = (utility[None] >= utility[:, None]) & (epsilon[None] <= epsilon[:, None])
    strictly = (utility[None] > utility[:, None]) | (epsilon[None] < epsilon[:, None])
    return ~(better & strictly).any(1) & ~np.isnan(utility)


def cheapest(table: pd.DataFrame, within: float) -> pd.Series | None:
    """Return the row with the least epsilon (then least time) and good utility, or None.

    Utility is good if it lies within the share `within` of the best.
    """
    if table.empty or table["utility"].isna().all():
        return None
    good = table[table["utility"] >= (1 - within) * table["utility"].max()]
    return good.sort_values(["epsilon", "seconds"], kind="stable").iloc[0]


def cheapest_sentence(table: pd.DataFrame, axes: Sequence[str], metric: str, within: float) -> str:
    """Return a sentence: which setting is the cheapest within a share of the best utility."""
    row = cheapest(table, within)
    if row is None:
        return "No run is finished yet, so none can be named the cheapest."
    where = ", ".join(f"{_title(axis)} = {row[axis]}" for axis in axes) or str(row["hash"])
    price = (
        f"epsilon {row['epsilon']:.3g}" if np.isfinite(row["epsilon"]) else "no guarantee (no DP)"
    )
    return (
        f"Cheapest within {within:.0%} of the best utility: {where}, with "
        f"{metric.replace('_', ' ')} {row['utility']:.4f} (best {table['utility'].max():.4f}) at "
        f"{price}, {row['seconds']:.0f} s a run."
    )


def t_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by Student's t; NaN for fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    half = (
        stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        * values.std(ddof=1)
        / np.sqrt(len(values))
    )
    return float(values.mean() - half), float(values.mean() + half)


def write_table(table: pd.DataFrame, folder: Path, failed: Mapping[str, str]) -> dict[str, Path]:
    """Write `table.md`, `table.csv` and `table.parquet`; return them by suffix.

    `failed` maps a run to its error sentence.
    """
    make_folder(folder)
    paths = {suffix: folder / f"table.{suffix}" for suffix in ("md", "csv", "parquet")}
    with replaced(paths["csv"]) as path:
        table.to_csv(path, index=False)
    with replaced(paths["parquet"]) as path:
        table.to_parquet(path, index=False)
    with replaced(paths["md"]) as path:
        path.write_text(
            "\n".join(markdown(shown(table)) + failures(failed)) + "\n", encoding="utf-8"
        )
    return paths


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts for people: intervals beside means, without empty columns."""
    texts = pd.DataFrame(index=table.index)
    for name in table.columns:
        if name in ("hash", "rule", "mode", "unit", "delta") or table[name].isna().all():
            continue
        if f"{name}_low" in table:
            texts[_title(name)] = [_with_interval(row, name) for _, row in table.iterrows()]
        elif not name.endswith(("_low", "_high")):
            texts[_title(name)] = [_text(value) for value in table[name]]
    return texts


def markdown(texts: pd.DataFrame) -> list[str]:
    """Return the lines of a Markdown table."""
    if texts.empty:
        return ["No run is finished yet."]
    rows = [list(texts.columns), ["---"] * texts.shape[1], *texts.to_numpy().tolist()]
    return [
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    ]


def failures(failed: Mapping[str, str]) -> list[str]:
    """Return a paragraph of Markdown for each run that failed."""
    return [line for name, why in failed.items() for line in ("", f"**Failed:** {name}: {why}")]


def _row(group: pd.DataFrame, axes: Sequence[str], column: str) -> dict[str, object]:
    first = group.iloc[0]
    row: dict[str, object] = {axis: first[axis] for axis in axes}
    row |= {"hash": first["hash"], "rule": first["selection.rule"], "mode": first["stream.mode"]}
    row |= {"unit": first["dp.unit"], "seeds": len(group)}
    for name, source in {"utility": column, **ATTACKS}.items():
        values = (
            group[source].dropna().to_numpy(dtype=np.float64) if source in group else np.zeros(0)
        )
        low, high = t_interval(values)
        row |= {
            name: values.mean() if len(values) else np.nan,
            f"{name}_low": low,
            f"{name}_high": high,
        }
    row["epsilon"] = _guarantee(group)
    row["delta"] = group["privacy.delta"].max() if "privacy.delta" in group else np.nan
    row["seconds"] = float((group["time.setup_s"] + group["time.train_s"]).mean())
    return row


def _guarantee(group: pd.DataFrame) -> float:
    """Return the largest guarantee of the group's runs; infinite if one has no DP."""
    if "privacy.epsilon_guarantee" not in group:
        return float("inf")
    return float(group["privacy.epsilon_guarantee"].fillna(np.inf).max())


def _title(name: str) -> str:
    wanted = f"{AXIS}epsilon"
    return "wanted epsilon" if name == wanted else name.removeprefix(AXIS).replace("_", " ")


def _with_interval(row: pd.Series, name: str) -> str:
    mean = row[name]
    low = row[f"{name}_low"]
    high = row[f"{name}_high"]
    if np.isnan(mean):
        return ""
    return f"{mean:.4f}" if np.isnan(low) else f"{mean:.4f} ± {(high - low) / 2:.4f}"


def _text(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    if isinstance(value, float):
        return "" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:.4g}"
    return str(value)
