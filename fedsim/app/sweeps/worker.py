"""A process that does runs one after another: `python -m fedsim.app.sweeps.worker`; `fedsim sweep`
starts it.

Each line of stdin is the path of a config; each line of stdout answers with how that run ended, as
JSON. When stdin closes, the process ends at once: a sweep that is killed leaves nothing running
behind. What a run loads of data is kept for the next one (see `load_holdings`).
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
"""How long a run may still be held by a worker of a sweep that was just killed."""


def main() -> None:
    """Do the runs that stdin names."""
    sys.path.insert(0, os.getcwd())
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a run prints goes to the log
    for path in wanted():
        answers.write(json.dumps({"error": how_it_ended(path)}) + "\n")
        answers.flush()


def wanted() -> Iterator[Path]:
    """Yield the paths as they come in; end the process when nobody can send one any more."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield Path(lines.get().rstrip("\n"))


def how_it_ended(path: Path) -> str:
    """Do a run; return "" or the sentence of what was wrong."""
    from fedsim.app.engines.local import run_local
    from fedsim.app.rundir.run_dir import RunDir

    try:
        config = load(path)
        _wait_for(RunDir.of(config).path / "lock")
        run_local(config)
    except (WrongInput, RunFailed) as error:
        return str(error)
    except Exception as error:  # whatever own code or a library raises ends this run and no other
        traceback.print_exc()
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def _wait_for(lock: Path) -> None:
    """Wait until the last process that held a run is gone; the run itself says when it stays."""
    if not lock.exists():
        return
    try:
        with FileLock(lock, timeout=PATIENCE_S):
            return
    except Timeout:
        return


if __name__ == "__main__":
    main()
