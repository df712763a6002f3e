"""The engine on a GPU, checked and measured in one call: `python experiments/benchmarks/gpu.py`.

For each model: one round of a cohort on the CPU and on the GPU must agree (without noise, float32);
then devices a second there, without and with DP-SGD, in fp32 and bf16. Exit code 1 where they do
not agree, 2 where torch sees no GPU; `--device cpu` tries the script itself.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from clients.training import Assignment, Trainer
from experiments.benchmarks.peers.engine import build
from experiments.benchmarks.peers.settings import SETTINGS, Setting, made_up
from fedsim.config import Dp, Train
from fedsim.models import parameters_of
from fedsim.privacy.noise import Seeded
from fedsim.types import Examples, Update

TOLERANCE = 1e-4
"""Relative to the largest change: sums of float32 in another order."""
MEMORY = 8 * 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="raw figures as JSON")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "torch sees no GPU here; run this where there is one, or try --device cpu",
            file=sys.stderr,
        )
        return 2
    rows = []
    good = True
    for name, setting in SETTINGS.items():
        apart = disagreement(setting, options.device, min(options.cohort, 8))
        good &= apart < TOLERANCE
        rows += [
            {"setting": name, "private": private, "precision": precision, "disagreement": apart}
            | {"devices_per_s": speed(setting, options, private, precision)}
            for private in (False, True)
            for precision in ("fp32", "bf16")
        ]
        for row in rows[-4:]:
            print(json.dumps(row), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if good else 1


def disagreement(setting: Setting, device: str, cohort: int) -> float:
    """Return the largest difference between CPU and device over the largest change, private and
    not.
    """
    worst = 0.0
    for private in (False, True):
        here, there = (
            train(setting, place, cohort, private, noise=0.0) for place in ("cpu", device)
        )
        for name, delta in here.delta.items():
            apart = float((delta - there.delta[name]).abs().max())
            worst = max(worst, apart / float(delta.abs().max().clamp(min=1e-12)))
    return worst


def speed(setting: Setting, options: argparse.Namespace, private: bool, precision: str) -> float:
    """Return the median devices a second over the rounds, the first left out."""
    seconds = []
    trainer, assigned = prepare(setting, options.device, options.cohort, private, 1.0, precision)
    params = parameters_of(trainer.module)
    for round in range(options.rounds + 1):
        start = time.perf_counter()
        trainer.train(
            params, assigned, seed=1, round=round
        )  # its sums are on the CPU when it returns
        seconds.append(time.perf_counter() - start)
    return options.cohort / statistics.median(seconds[1:])


def train(setting: Setting, device: str, cohort: int, private: bool, noise: float) -> Update:
    trainer, assigned = prepare(setting, device, cohort, private, noise, "fp32")
    return trainer.train(parameters_of(trainer.module), assigned, seed=1, round=1)


def prepare(
    setting: Setting, device: str, cohort: int, private: bool, noise: float, precision: str
) -> tuple[Trainer, list[Assignment]]:
    """Return a trainer on the device and the cohort that it trains."""
    module, task = build(setting)
    steps = -(-setting.examples // setting.batch)
    settings = Train(lr=setting.lr, batch_size=setting.batch, local_steps=steps).model_copy(
        update={"precision": precision}
    )
    rate = setting.batch / setting.examples
    dp = Dp(unit="example", clip_norm=setting.clip, noise_multiplier=noise, sampling_rate=rate)
    trainer = Trainer(module.to(device), task, settings, MEMORY, dp if private else None, Seeded(0))
    data = [made_up(setting, setting.examples, seed=number) for number in range(cohort)]
    return trainer, [
        Assignment(f"d{n:06d}", Examples(d), 1.0, setting.examples) for n, d in enumerate(data)
    ]


if __name__ == "__main__":
    sys.exit(main())
