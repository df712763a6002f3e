"""Where a run happens: data directory, torch device, threads and memory for a chunk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from fedsim.config import Config, Place
from fedsim.errors import WrongInput

DATA_VARIABLE = "FEDSIM_DATA"
GIB = 2**30
CUDA_GIB = 0.25
CACHED_GIB = 1 / 16
"""GiB for each CPU thread: small enough for its caches, large enough for its vector units."""
FEWEST_IN_PROCESSES = 5000
"""A run that trains fewer devices than this loses time by starting processes."""


def data_dir(place: Place, node_config: Mapping[str, Any]) -> Path | None:
    """Return the data directory: node-config `data-path`, then place.data_dir, then FEDSIM_DATA."""
    named = node_config.get("data-path") or place.data_dir or os.environ.get(DATA_VARIABLE, "")
    return Path(str(named)).expanduser() if named else None


def torch_device(place: Place) -> torch.device:
    """Return the device that the place names. Raises WrongInput for cuda without a GPU."""
    if place.device == "cuda" and not torch.cuda.is_available():
        raise WrongInput("place.device = 'cuda' but torch sees no GPU; use --device cpu or auto")
    cuda = place.device == "cuda" or (place.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def threads(place: Place) -> int:
    """Return the number of torch threads: as named, else one for each core."""
    return place.threads or os.cpu_count() or 1


def lanes(config: Config, nodes: int) -> Literal["threads", "processes"]:
    """Return what trains chunks side by side; it depends on how many devices the run will train.

    Nodes on one machine share its cores, so they use threads. A GPU has one lane.
    """
    if torch_device(config.place).type != "cpu":
        return "threads"
    if config.place.lanes != "auto":
        return config.place.lanes
    many = config.train.rounds * config.selection.cohort >= FEWEST_IN_PROCESSES
    return "processes" if many and nodes == 1 else "threads"


def chunk_bytes(place: Place) -> int:
    """Return the bytes that all chunks in training at one time may take together.

    Small chunks are faster on a CPU: the next step finds its data still in the cache.
    """
    default = CACHED_GIB * threads(place) if torch_device(place).type == "cpu" else CUDA_GIB
    return int((place.memory_gib or default) * GIB)
