"""What a round costs over a real SuperLink: bytes and seconds against model size and number of
nodes.

python -m experiments.deployment.overhead WORK_FOLDER experiments/deployment/results/overhead.json

All traffic of the nodes passes a relay that counts it, the app's bundle (once a node) included;
replies are counted in the SuperLink's log.
"""

import json
import sys
from pathlib import Path
from typing import Any

from experiments.deployment.processes import Federation
from experiments.deployment.relay import Relay
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, from_flat, to_toml

SIZES = {"small": (8, 8), "large": (256, 1024)}
"""Name -> embedding and hidden width of the bag model."""
NODES = (1, 2, 4)
ROUNDS = 3


def experiment(home: Path, size: str, nodes: int) -> Config:
    embedding, hidden = SIZES[size]
    found = from_flat(
        {
            "name": f"{size}-{nodes}",
            "data.devices": 40,
            "data.examples": 400,
            "model.embedding": embedding,
            "model.hidden": hidden,
            "train.rounds": ROUNDS,
            "evaluation.every": ROUNDS,
            "selection.rule": "uniform",
            "selection.cohort": 20,
            "aggregation.rule": "fedavg",
            "place.out": str(home / "runs"),
            "place.threads": 1,
            "place.nodes": nodes,
        }
    )
    (home / f"{found.name}.toml").write_text(to_toml(found))
    return found


def measure(home: Path, size: str, nodes: int) -> dict[str, Any]:
    """Return a row of figures: one federation, one run."""
    with Federation(home / f"{size}-{nodes}") as federation:
        federation.superlink()
        with Relay(("127.0.0.1", federation.port)) as relay:
            for i in range(nodes):
                own = {"partition-id": i, "num-partitions": nodes}
                federation.node(f"node{i}", own, superlink=relay.address)
            config = experiment(federation.home, size, nodes)
            where = ("--backend", "superlink", "--address", federation.address, "--insecure")
            done = federation.fedsim("run", f"{config.name}.toml", *where)
            assert done.returncode == 0, done.stderr
            moved = relay.passed
        run = RunDir.of(config)
        checkpoint = run.last_checkpoint()
        assert checkpoint is not None
        seconds = [row["time_train_s"] for row in run.rows()]
        return {
            "model": size,
            "parameters": sum(p.numel() for p in checkpoint.params.values()),
            "nodes": nodes,
            "rounds": ROUNDS,
            "bytes_all": moved,
            "bytes_a_round_and_node": round(moved / ROUNDS / nodes),
            "replies": federation.log("superlink").count("Push replies from"),
            "replies_wanted": nodes * (1 + ROUNDS),
            "seconds_a_round": [round(s, 1) for s in seconds],
        }


def main() -> None:
    home = Path(sys.argv[1]).resolve()
    target = Path(sys.argv[2])
    found = []
    for size in SIZES:
        for nodes in NODES:
            found.append(measure(home, size, nodes))
            print(json.dumps(found[-1]), flush=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
