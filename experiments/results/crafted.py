"""How often a bound on the engine's own code is above its epsilon: `python
experiments/results/crafted.py`.

Independently seeded audits of one round with a crafted canary
(fedsim/app/audits/bounds/crafted_canary.py): of builds that are right, whose bounds may exceed
epsilon in at most 5 % + 2 standard errors of the trials, and of builds without noise or clip, whose
bounds all should. Prints the table and writes crafted.json beside this file.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from clients import dp_sgd as private_steps
from clients.example_clip import Clip
from fedsim.app.audits.bounds.crafted_canary import (
    AuditedCode,
    Crafted,
    audit_devices,
    audit_examples,
)
from fedsim.config import from_flat
from fedsim.models import build_model, parameters_of
from fedsim.models.tasks import make_task
from fedsim.privacy.noise import NoiseSource
from fedsim.types import Examples, Spec

DELTA = 1e-5
NOISE = 2.0
SPEC = Spec("classification", vocabulary=30, labels=("a", "b", "c"), length=6)
UNITS = {
    "example, exact": {"dp.unit": "example", "dp.trust": "local"},
    "example, edp": {"dp.unit": "example", "dp.trust": "local", "dp.method": "edp"},
    "example, exact, sampled": {"dp.unit": "example", "dp.trust": "local", "dp.sampling_rate": 0.5},
    "device": {"dp.unit": "device"},
}


@contextmanager
def right() -> Iterator[None]:
    yield


@contextmanager
def without_noise() -> Iterator[None]:
    with patch.object(NoiseSource, "normals", lambda self, out, names: out.zero_()):
        yield


@contextmanager
def without_clip() -> Iterator[None]:
    with patch.object(private_steps, "clip_of", lambda dp: Clip(1e6)):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--runs", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    builds: list[tuple[str, str, Callable, int]] = [
        (unit, "right", right, options.trials) for unit in UNITS
    ]
    builds += [
        ("example, exact", "without noise", without_noise, 5),
        ("device", "without noise", without_noise, 5),
    ]
    builds += [("example, exact", "without clip", without_clip, 5)]
    rows = [measured(*build, options.runs) for build in builds]
    print(
        "| unit | build | trials | epsilon | largest bound | mean bound | ceiling | over epsilon |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['unit']} | {row['build']} | {row['trials']} | {row['epsilon']:.2f} | "
            f"{row['largest']:.2f} | {row['mean']:.2f} | {row['ceiling']:.2f} | {row['over']} |"
        )
    (Path(__file__).parent / "crafted.json").write_text(
        json.dumps(rows, indent=1) + "\n", encoding="utf-8"
    )


def measured(unit: str, build: str, sabotage: Callable, trials: int, runs: int) -> dict:
    with sabotage():
        found = [audited(unit, seed, runs) for seed in range(1, trials + 1)]
    low = np.array([f.bound.epsilon_low for f in found])
    return {
        "unit": unit,
        "build": build,
        "trials": trials,
        "epsilon": found[0].epsilon,
        "largest": float(low.max()),
        "mean": float(low.mean()),
        "ceiling": found[0].bound.ceiling,
        "over": int((low > found[0].epsilon).sum()),
    }


def audited(unit: str, seed: int, runs: int) -> Crafted:
    shared = {
        "seed": seed,
        "model.embedding": 4,
        "train.lr": 1.0,
        "train.local_steps": 1,
        "train.batch_size": 4,
        "selection.cohort": 4,
        "aggregation.lr": 1.0,
        "aggregation.weights": "equal",
        "dp.clip_norm": 0.05,
        "dp.noise_multiplier": NOISE,
    }
    settings = from_flat(shared | UNITS[unit])
    module = build_model(SPEC, settings.model, seed)
    code = AuditedCode(settings, module, make_task(SPEC), parameters_of(module), DELTA, runs)
    if unit == "device":
        return audit_devices(code)
    tokens = torch.tensor([[2, 3, 4], [5, 6, 7], [2, 5, 8], [20, 21, 22]])
    return audit_examples(code, Examples({"tokens": tokens, "label": torch.tensor([0, 1, 1, 2])}))


if __name__ == "__main__":
    main()
