"""Requests of a few users for each node, to try the guide on.

python experiments/deployment/sample.py FOLDER writes FOLDER/node-1/data/train.jsonl and that of
node-2.
"""

import json
import sys
from pathlib import Path

SAID = {
    "alarm": ["wake me at seven", "set an alarm for noon", "cancel my alarm"],
    "light": ["turn on the lamp", "make it dark", "red light please"],
    "music": ["play some jazz", "i want to hear adele", "stop the music"],
    "weather": ["will it rain today", "how cold is it", "do i need a coat"],
}
NODES = {"node-1": ["ann", "bob", "cid"], "node-2": ["dot", "eve", "fay"]}


def write_samples(folder: Path) -> None:
    """Write each node's own file."""
    for node, users in NODES.items():
        path = folder / node / "data" / "train.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"text": text, "intent": intent, "user": user}
            for user in users
            for intent, texts in SAID.items()
            for text in texts
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]))
