"""The health of a run, for its operators: metrics.json, metrics.prom and log.jsonl."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.app.budget.spending import Spending
from fedsim.app.rundir.files import write_json, write_text
from fedsim.app.rundir.round_record import Round
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config
from fedsim.errors import RunFailed, WrongInput

LOGGERS = ("fedsim", "strategies")
HELP = {
    "up": "1 while the run works, 0 after it ended",
    "rounds_done": "rounds that are done",
    "rounds": "rounds in all",
    "cohort": "devices selected in the last round",
    "devices": "devices whose updates are in the last round",
    "rejected": "updates rejected in the last round",
    "rejected_all": "updates rejected so far",
    "epsilon_spent_rdp": "largest epsilon that a unit has spent so far, by RDP; absent without DP",
    "round_seconds": "seconds of the last round's training",
    "updated": "when this was written, seconds since 1970",
}


def write_health(run: RunDir, config: Config, spending: Spending, why: str = "") -> None:
    """Write the metrics as of the last row.

    `why` tells how the run ended; it is "" while the run goes on.
    """
    if not config.place.metrics:
        return
    found = gauges(run.rounds(), config, spending) | {"up": int(not why)}
    write_json(run.path / "metrics.json", found | {"status": why or "running"})
    lines = [
        f"# HELP fedsim_{key} {HELP[key]}\n# TYPE fedsim_{key} gauge\n"
        f'fedsim_{key}{{run="{config.name}",seed="{config.seed}"}} {value:.10g}\n'
        for key, value in found.items()
    ]
    write_text(run.path / "metrics.prom", "".join(lines))


def gauges(rounds: list[Round], config: Config, spending: Spending) -> dict[str, float]:
    """Return the metrics of HELP, without `up`."""
    last = rounds[-1] if rounds else Round(0, 0, 0, 0)
    found: dict[str, float] = {
        "rounds_done": len(rounds),
        "rounds": config.train.rounds,
        "cohort": last.cohort,
        "devices": last.devices,
        "rejected": last.rejected,
        "rejected_all": sum(done.rejected for done in rounds),
        "round_seconds": last.time_train_s,
        "updated": time.time(),
    }
    spent = spending.spent_rdp()
    return found if spent is None else found | {"epsilon_spent_rdp": spent}


class _Lines(logging.Formatter):
    """Formats each record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
        }
        return json.dumps(told | {"part": record.name, "message": record.getMessage()})


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Write our own log records and the end of the run to `log.jsonl`."""
    handler = logging.FileHandler(folder / "log.jsonl", encoding="utf-8", delay=True)
    handler.setFormatter(_Lines())
    ours: list[Any] = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in ours]
    for logger in ours:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    except (RunFailed, WrongInput) as error:
        ours[0].error("the run ended: %s", error)
        raise
    finally:
        for logger, level in zip(ours, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
