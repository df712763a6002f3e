"""Where a run happens: the data directory, the torch device, the threads, the memory for a chunk."""

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
"""What pays for each thread of a CPU: small enough for its caches, large enough to fill its vector
units.
"""
FEWEST_IN_PROCESSES = 5000
"""Devices that a run trains, below which starting processes takes longer than they save."""


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
    """Return the torch threads to use: as named, else one a core."""
    return place.threads or os.cpu_count() or 1


def lanes(config: Config, nodes: int) -> Literal["threads", "processes"]:
    """Return what trains chunks side by side, by the devices that a run is planned to train.

    Nodes that share a machine share its cores, so they keep to threads; a GPU has one lane.
    """
    if torch_device(config.place).type != "cpu":
        return "threads"
    if config.place.lanes != "auto":
        return config.place.lanes
    many = config.train.rounds * config.selection.cohort >= FEWEST_IN_PROCESSES
    return "processes" if many and nodes == 1 else "threads"


def chunk_bytes(place: Place) -> int:
    """Return the memory that the chunks of stacked devices that train at a time may take.

    On a CPU small chunks are faster: what a step leaves is still in the cache when the next one
    needs it.
    """
    default = CACHED_GIB * threads(place) if torch_device(place).type == "cpu" else CUDA_GIB
    return int((place.memory_gib or default) * GIB)
