"""A federation across network namespaces, on a bad network: delays, a stall, resets, a partition.

The SuperLink lies in one namespace, both nodes in another; between them is a relay of ours. Needs
root.

    python -m experiments.deployment.network WORK_FOLDER experiments/deployment/results/network.json
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.deployment.processes import ROOT, Federation, until
from experiments.deployment.relay import Relay
from experiments.deployment.sample import write_samples
from fedsim.app.engines.deployment import superlink_command, write_deployment
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, load, to_toml

SERVER = "fedsim-server"
NODES = "fedsim-nodes"
LINKS = {SERVER: ("10.77.1.1", "10.77.1.2"), NODES: ("10.77.2.1", "10.77.2.2")}
"""Namespace -> our end of the wire to it, its own end."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def make_namespaces() -> None:
    for i, (name, (ours, theirs)) in enumerate(LINKS.items()):
        ip("netns", "add", name)
        ip("link", "add", f"fedsim{i}", "type", "veth", "peer", "name", "wire", "netns", name)
        ip("addr", "add", f"{ours}/24", "dev", f"fedsim{i}")
        ip("link", "set", f"fedsim{i}", "up")
        ip("-n", name, "addr", "add", f"{theirs}/24", "dev", "wire")
        for device in ("wire", "lo"):
            ip("-n", name, "link", "set", device, "up")


def remove_namespaces() -> None:
    for name in LINKS:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


class Apart(Federation):
    """A federation whose processes are in namespaces: nodes in one, everything else in another."""

    def start(self, name: str, command: Any, **extra: str) -> Any:
        place = NODES if name.startswith("node") else SERVER
        return super().start(name, ["ip", "netns", "exec", place, *command], **extra)


def measure(
    federation: Apart, relay: Relay, name: str, disturb: Callable[[Relay], None]
) -> dict[str, Any]:
    """Run the experiment under a disturbance that begins with its first round; return what was
    seen.
    """
    config = experiment(federation.home, name)
    run = RunDir.of(config)
    before = relay.passed
    start = time.monotonic()
    options = ("--backend", "superlink", "--address", federation.address)
    trusted = ("--root-certificates", str(federation.home / "keys" / "ca.crt"))
    ours = federation.fedsim_in_background(
        f"user-{name}", "run", f"{name}.toml", *options, *trusted
    )
    until(lambda: run.exists or ours.poll() is not None, 200, f"the run {name}")
    disturbing = threading.Thread(target=disturb, args=(relay,))
    disturbing.start()
    code = ours.wait(600)
    disturbing.join()
    rows = run.rows()
    last = federation.log(f"user-{name}").strip().splitlines()
    return {
        "network": name,
        "exit_code": code,
        "rounds": len(rows),
        "devices": [row["devices"] for row in rows],
        "round_seconds": [round(row["time_train_s"], 1) for row in rows],
        "seconds": round(time.monotonic() - start, 1),
        "bytes": relay.passed - before,
        "said": "" if code == 0 else last[-1],
    }


def experiment(home: Path, name: str) -> Config:
    config = load(ROOT / "experiments" / "deployment" / "assistant.toml", ["place.deadline_s=0"])
    place = config.place.model_copy(update={"out": str(home / "runs"), "threads": 1})
    found = config.model_copy(update={"name": name, "place": place})
    (home / f"{name}.toml").write_text(to_toml(found))
    return found


def delay(relay: Relay) -> None:
    relay.delay_s = 0.2


def stall(relay: Relay) -> None:
    time.sleep(3)
    relay.stalled = True
    time.sleep(20)
    relay.stalled = False


def reset(relay: Relay) -> None:
    for _ in range(5):
        time.sleep(4)
        relay.reset()


def partition(relay: Relay) -> None:
    time.sleep(3)
    relay.partitioned = True
    relay.reset()
    time.sleep(30)
    relay.partitioned = False


def unplug(relay: Relay) -> None:
    """Take the nodes' wire away for a while: packets vanish, and nobody is told."""
    time.sleep(3)
    ip("link", "set", "fedsim1", "down")
    time.sleep(20)
    ip("link", "set", "fedsim1", "up")


def main() -> None:
    home = Path(sys.argv[1]).resolve()
    target = Path(sys.argv[2])
    remove_namespaces()
    make_namespaces()
    found = []
    try:
        with Apart(home) as federation:
            keys = home / "keys"
            host = LINKS[NODES][0]
            write_samples(home)
            write_deployment(keys, host, federation.port, 2)
            federation.start("superlink", superlink_command(keys, federation.port))
            until(lambda: "Uvicorn running" in federation.log("superlink"), 60, "the SuperLink")
            for i in (1, 2):
                federation.start(
                    f"register-{i}", ["/bin/sh", "-c", registering(federation, i)]
                ).wait()
            with Relay((LINKS[SERVER][1], federation.port), (host, federation.port)) as relay:
                for i in (1, 2):
                    federation.start(f"node-{i}", node_script(keys, home, i))
                quiet: Callable[[Relay], None] = lambda relay: None  # noqa: E731
                for name, disturb in {
                    "calm": quiet, "delayed": delay, "stalled": stall, "reset": reset,
                    "partitioned": partition, "unplugged": unplug,
                }.items():  # fmt: skip
                    found.append(measure(federation, relay, name, disturb))
                    relay.delay_s = 0.0
                    print(json.dumps(found[-1]), flush=True)
    finally:
        remove_namespaces()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")


def registering(federation: Apart, i: int) -> str:
    """Return the command that registers a node from the SuperLink's own namespace."""
    keys = federation.home / "keys"
    here = federation.home / "register"
    here.mkdir(exist_ok=True)
    text = (keys / "flwr" / "config.toml").read_text().replace(LINKS[NODES][0], "127.0.0.1")
    (here / "config.toml").write_text(text)
    return f"FLWR_HOME={here} flwr supernode register {keys}/node-{i}.pub fedsim"


def node_script(keys: Path, home: Path, i: int) -> list[str]:
    (keys / f"node-{i}.conf").write_text(
        f'data-path="{home}/node-{i}/data" state-path="{home}/state{i}"'
    )
    return [str(keys / f"node-{i}.sh")]


if __name__ == "__main__":
    main()
