"""Shadow models of a run: the same experiment with other seeds and other coins, in RUN/shadows.

Each shadow is a whole federated run. It goes through the same selection, aggregation, clipping and
noise as the attacked model. Shadows are stored under the hash of their config and are never trained
twice. An interrupted shadow continues where it stopped.
"""

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from fedsim.app.allocator import keep_freed_memory
from fedsim.app.audits.audited import Another
from fedsim.app.place import threads
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, Place, from_flat, to_flat
from fedsim.seeds import generator

FEWEST_IN_PROCESSES = 4
"""Fewest shadows that train in processes; for fewer, starting processes takes longer."""


def shadow_config(config: Config, number: int, run: RunDir) -> Config:
    """Return the config of a shadow model: another seed, other coins, no audits, no reference."""
    seed = int(generator(config.audit.seed or config.seed, "shadow", number).integers(2**62))
    place = config.place.model_copy(
        update={"out": str(run.path / "shadows"), "threads": 1, "keep": "last"}
    )
    changed = {
        "seed": seed,
        "train.centralised": False,
        "evaluation.every": config.train.rounds,
        "audit.evaluators": "",
        "audit.every": 0,
        "audit.attacks": "auto",
        "audit.references": 0,
        "audit.view": "final",
        "audit.window": 1,
        "audit.records": 0,
        "audit.seed": config.audit.seed or config.seed,
        "audit.shadow": number,
    }
    return from_flat(
        to_flat(config) | changed | {f"place.{k}": v for k, v in place.model_dump().items()}
    )


def train_shadows(config: Config, run: RunDir, count: int, another: Another) -> list[RunDir]:
    """Return `count` finished shadow runs; `another` trains the missing ones.

    Numbers 2i - 1 and 2i are a pair on complementary halves. At most as many shadows train at once
    as there are threads.
    """
    configs = [shadow_config(config, number, run) for number in range(1, count + 1)]
    missing = [c for c in configs if RunDir.of(c).summary is None]
    workers = min(threads(config.place), len(missing))
    if workers > 1 and len(missing) >= FEWEST_IN_PROCESSES:
        _in_processes(missing, workers, another)
    else:
        before = torch.get_num_threads()
        for one in missing:
            another(one.model_copy(update={"place": _wide(one.place, config.place)}))
        torch.set_num_threads(before)
    return [RunDir.of(c) for c in configs]


def _wide(place: Place, of_run: Place) -> Place:
    return place.model_copy(update={"threads": of_run.threads})


def _in_processes(configs: Sequence[Config], workers: int, another: Another) -> None:
    # fresh processes: a fork would copy torch's and Flower's threads in an unknown state
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(list(sys.path),)
    ) as pool:
        for training in [pool.submit(_trained, another, config) for config in configs]:
            training.result()


def _trained(another: Another, config: Config) -> None:
    another(config)  # the result stays in its process


def _begin(path: list[str]) -> None:
    sys.path[:] = path
    keep_freed_memory()
