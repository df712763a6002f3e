"""One point of growth.py, a whole experiment in this process: `-m experiments.benchmarks.peers.grow
JOB`.
"""

import json
import resource
import sys
import tempfile
import time

from fedsim.app.engines.local import run_local
from fedsim.app.rundir.files import Row
from fedsim.config import from_flat


def main() -> None:
    job = json.loads(sys.argv[1])
    start = time.perf_counter()
    rows = list[Row]()
    with tempfile.TemporaryDirectory() as out:
        run_local(from_flat(job["config"] | {"place.out": out}), watch=rows.append)
    training = [float(row["time_train_s"]) for row in rows]
    found = {
        "seconds": training[job["warmup"] :],
        "trained": [row["devices"] for row in rows[job["warmup"] :]],
        "rest_seconds": time.perf_counter() - start - sum(training),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
