"""Parallel runs: worker processes share the cores; each does one run at a time."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
RUNS_A_PROCESS = 20
"""Runs after which a process is replaced, because each run leaves something in its memory."""
Told = Callable[[int, str], None]


class Worker:
    """One `fedsim.app.sweeps.worker` process; a new one replaces it when it dies."""

    def __init__(self, threads: int, log: IO[Any]) -> None:
        self.threads = threads
        self.log = log
        self.process: subprocess.Popen[str] | None = None
        self.done = 0

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def run(self, config: Path) -> str:
        """Do the run of a config file; return "" or its error as a sentence."""
        if self.done and self.done % RUNS_A_PROCESS == 0:
            self.end()
        self.done += 1
        process = self.process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{config}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return str(json.loads(line)["error"])
        self.end()
        return (
            f"the process ended with exit code {process.returncode}; "
            "too little memory is a usual reason"
        )

    def end(self) -> None:
        """End the process: closing its stdin makes it leave by itself."""
        process = self.process
        self.process = None
        if process is not None:
            process.communicate()

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "fedsim.app.sweeps.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(self.threads)),
        )


def run_all(configs: Sequence[Path], jobs: int, threads: int, log: Path, told: Told) -> None:
    """Do the runs of all config files, `jobs` at a time with `threads` threads each.

    `told(i, error)` is called when a run ends, one call at a time; `error` is "" after success.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(configs)):
        waiting.put(i)
    one_at_a_time = threading.Lock()

    def work() -> None:
        with log.open("a", encoding="utf-8") as stream, Worker(threads, stream) as worker:
            while True:
                try:
                    i = waiting.get_nowait()
                except queue.Empty:
                    return
                error = worker.run(configs[i])
                with one_at_a_time:
                    told(i, error)

    crew = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(configs)))]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
