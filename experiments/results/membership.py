"""Membership against epsilon on MASSIVE: `python experiments/results/membership.py --data-dir DIR`.

`experiments/membership_massive.toml` without DP, and with example-level DP-SGD and micro-batches
(after eDP-SGD) at the same true epsilon: AUC, true positive rate and utility, over the run and its
shadow federations as targets, two pools. Finished runs are not repeated. Prints the table; writes
membership.json and membership.png beside this file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
EXPERIMENT = HERE.parent / "membership_massive.toml"
NOISE = {1: 2.1426, 2: 1.3452, 8: 0.69626, 32: 0.40044}
"""Noise multipliers that `fedsim calibrate EXPERIMENT --epsilon E` found, with the settings of
`DP`.
"""
RATES = {1: 10.0, 2: 20.0, 8: 40.0, 32: 60.0}
"""Learning rates, chosen roughly on test accuracy: no epsilon covers that."""
DP = {"dp.unit": "example", "dp.trust": "local", "dp.delta": 1e-5, "dp.sampling_rate": 0.05}
METHODS = {"exact": {}, "edp": {"dp.method": "edp", "dp.micro_batches": 64}}
COLOURS = {"exact": "#0072b2", "edp": "#d55e00"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    found = [
        measured(name, epsilon, seed, options)
        for name, epsilon in [("none", 0), *((m, e) for m in METHODS for e in NOISE)]
        for seed in range(1, options.seeds + 1)
    ]
    for line in table(found):
        print(line)
    (HERE / "membership.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found)


def measured(method: str, epsilon: int, seed: int, options: argparse.Namespace) -> dict:
    """Return what one run and its shadows say, with each pool's own intervals."""
    settings = {"train.lr": 100.0}
    if method != "none":
        half = 0.5 if method == "edp" else 1.0
        settings = DP | METHODS[method]
        settings |= {"dp.noise_multiplier": NOISE[epsilon], "train.lr": half * RATES[epsilon]}
    command = [sys.executable, "-m", "fedsim", "run", str(EXPERIMENT), "--json"]
    command += ["--data-dir", options.data_dir, "--out", options.out, "--set", f"seed={seed}"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    summary = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    run = Path(options.out) / EXPERIMENT.stem / summary["config_hash"] / f"seed={seed}"
    rows = [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]
    wrong = next(r for r in rows if r.get("slice") == "mislabelled" and r["value"] is True)
    return {
        "method": method,
        "seed": seed,
        "epsilon": summary["privacy"].get("epsilon_max"),
        "accuracy": summary["metrics"]["accuracy"],
        "attacks": {row["attack"]: row for row in summary["attacks"]["membership"]},
        "mislabelled": {
            name: wrong[name] for name in ("attack", "records", "auc", "auc_low", "auc_high")
        },
    }


def table(found: list[dict]) -> list[str]:
    """Markdown: a line a run, each with its targets' interval."""
    lines = [
        "| training | epsilon | pool | accuracy | loss AUC | strongest AUC (95 %) | allowed AUC | "
        "TPR at 1 % | AUC, mislabelled | over the region | blind AUC |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        name, best = list(row["attacks"].items())[-1]
        wrong = row["mislabelled"]
        over = f"{best['over_region']:.3f}" if "over_region" in best else ""
        allowed = f"{best['allowed_auc']:.3f}" if "allowed_auc" in best else ""
        epsilon = f"{row['epsilon']:.2f}" if row["epsilon"] else "none"
        lines.append(
            f"| {row['method']} | {epsilon} | {row['seed']} | {100 * row['accuracy']:.1f} % | "
            f"{row['attacks']['loss']['auc']:.3f} | {name} {best['auc']:.3f} "
            f"({best['auc_low']:.3f} to {best['auc_high']:.3f}) | {allowed} | "
            f"{100 * best['tpr_at_1pct']:.1f} % | {wrong['auc']:.3f} | {over} | "
            f"{best['blind_auc']:.3f} |"
        )
    return lines


def draw(found: list[dict]) -> None:
    """Three panels over epsilon: area, true positive rate, accuracy; no DP as a line across."""
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for axis, title in zip(
        axes, ("AUC of the strongest attack", "TPR at 1 % FPR", "test accuracy"), strict=True
    ):
        axis.set(title=title, xlabel="epsilon of one example (delta 1e-5)", xscale="log")
    for method, colour in {"none": "#555555", **COLOURS}.items():
        rows = sorted(
            (r for r in found if r["method"] == method), key=lambda r: r["epsilon"] or 0.0
        )
        best = [list(r["attacks"].values())[-1] for r in rows]
        series = (
            [b["auc"] for b in best],
            [b["tpr_at_1pct"] for b in best],
            [r["accuracy"] for r in rows],
        )
        for axis, values in zip(axes, series, strict=True):
            if method == "none":
                for value in values:
                    axis.axhline(
                        value,
                        color=colour,
                        linestyle=":",
                        label="no DP" if value == values[0] else None,
                    )
            else:
                axis.plot(
                    [r["epsilon"] for r in rows], values, "o", color=colour, label=f"{method}"
                )
        if method != "none":
            bars = [
                [b["auc"] - b["auc_low"] for b in best],
                [b["auc_high"] - b["auc"] for b in best],
            ]
            axes[0].errorbar(
                [r["epsilon"] for r in rows], series[0], yerr=bars, fmt="none", color=colour
            )
    allowed = sorted(
        {
            (r["epsilon"], list(r["attacks"].values())[-1]["allowed_auc"])
            for r in found
            if r["epsilon"]
        }
    )
    axes[0].plot(*zip(*allowed, strict=True), "--", color="#999999", label="allowed by the profile")
    axes[0].axhline(0.5, color="#cccccc", linewidth=0.8)
    axes[1].axhline(0.01, color="#cccccc", linewidth=0.8)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(HERE / "membership.png", dpi=150)


if __name__ == "__main__":
    main()
