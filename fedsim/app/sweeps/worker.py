"""A worker process of `fedsim sweep`, `python -m fedsim.app.sweeps.worker`: one run after another.

Each line of stdin is the path of a config. Each line of stdout tells in JSON how that run ended.
When stdin closes, the process ends at once, so a killed sweep leaves no process behind. The next
run reuses loaded data (see `load_holdings`).
"""

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fedsim.app.allocator import keep_freed_memory
from fedsim.config import load
from fedsim.errors import RunFailed, WrongInput, first_line

PATIENCE_S = 30.0
"""Seconds to wait for a run that a worker of a killed sweep may still hold."""


def main() -> None:
    """Do the runs that stdin names."""
    sys.path.insert(0, os.getcwd())
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the output of a run goes to the log
    for path in wanted():
        answers.write(json.dumps({"error": how_it_ended(path)}) + "\n")
        answers.flush()


def wanted() -> Iterator[Path]:
    """Yield the paths as they come in; end the process when stdin closes."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield Path(lines.get().rstrip("\n"))


def how_it_ended(path: Path) -> str:
    """Do a run; return "" or its error as a sentence."""
    from fedsim.app.engines.local import run_local
    from fedsim.app.rundir.run_dir import RunDir

    try:
        config = load(path)
        _wait_for(RunDir.of(config).path / "lock")
        run_local(config)
    except (WrongInput, RunFailed) as error:
        return str(error)
    except Exception as error:  # any error ends only this run
        traceback.print_exc()
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def _wait_for(lock: Path) -> None:
    """Wait until the last process that held a run is gone, or until `PATIENCE_S` is over."""
    if not lock.exists():
        return
    try:
        with FileLock(lock, timeout=PATIENCE_S):
            return
    except Timeout:
        return


if __name__ == "__main__":
    main()
