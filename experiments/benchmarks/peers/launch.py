"""A worker process: started with a job, waited for, ended with all that it started."""

import json
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SPIN = {"GOMP_SPINCOUNT": "1000"}
"""Threads spin a little and then sleep, as our command line sets it; for every peer alike."""
KEPT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""Freed memory is kept by the process, as our command line sets it."""


def ask(
    command: list[str], job: dict[str, Any], timeout: float, kept: bool = True, **environment: str
) -> dict[str, Any]:
    """Return the last line that the worker prints, or {"failed": why}.

    The worker has a session, and a home for Flower, of its own; whatever of that session is left at
    its end is ended.
    """
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [*command, json.dumps(job)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "FLWR_HOME": home,
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                **SPIN,
                **(KEPT if kept else {}),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {timeout:.0f} s"}
        finally:
            _end(process)
    rows = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not rows:
        said = [line for line in err.splitlines() if line.strip()] or ["no output"]
        return {"failed": said[-1][:300]}
    return json.loads(rows[-1])


def _end(process: subprocess.Popen[str], patience: float = 15) -> None:
    """End what is left of the worker's session: by request if it still runs, then by force."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=patience)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
