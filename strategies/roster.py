"""The devices of a run, their public activity, and the node that hosts each."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import WrongInput
from fedsim.types import Announcement


@dataclass(frozen=True)
class Roster:
    """All announced devices, sorted by id; arrays are aligned."""

    devices: NDArray[np.str_]
    activity: NDArray[np.int64]
    nodes: NDArray[np.uint64]
    real: bool = False
    """Whether any node holds data of its own."""

    def nodes_of(self, devices: NDArray[np.str_]) -> NDArray[np.uint64]:
        """Return the node that hosts each of `devices`."""
        return self.nodes[np.searchsorted(self.devices, devices)]


def merge(announcements: Mapping[int, Announcement]) -> Roster:
    """Join the nodes' announcements. Raises WrongInput when two nodes announce one device."""
    devices = np.concatenate([a.devices for a in announcements.values()])
    activity = np.concatenate([a.activity for a in announcements.values()])
    nodes = np.concatenate(
        [np.full(len(a.devices), node, dtype=np.uint64) for node, a in announcements.items()]
    )
    order = np.argsort(devices, kind="stable")
    devices = devices[order]
    twice = np.flatnonzero(devices[1:] == devices[:-1])
    if len(twice):
        raise WrongInput(
            f"device {str(devices[twice[0]])!r} is announced by two nodes; a device belongs to "
            "one node: check the nodes' data folders"
        )
    return Roster(
        devices, activity[order], nodes[order], any(a.real for a in announcements.values())
    )


def moved(roster: Roster, node: int, announced: Announcement, here: Collection[int]) -> Roster:
    """Return the roster with a node's announcement applied: where its devices are and how active.

    `here` are the other nodes that are connected. Raises WrongInput for devices that the run did
    not begin with, and for a device whose node is still connected.
    """
    known = np.isin(announced.devices, roster.devices)
    if not known.all():
        raise WrongInput(
            f"it announces {str(announced.devices[~known][0])!r}, whom the run did not begin "
            "with; a device joins with the next run"
        )
    places = np.searchsorted(roster.devices, announced.devices)
    owned = np.isin(roster.nodes[places], list(here))
    if owned.any():
        raise WrongInput(f"device {str(announced.devices[owned][0])!r} is announced by two nodes")
    nodes = roster.nodes.copy()
    activity = roster.activity.copy()
    nodes[places] = node
    activity[places] = announced.activity
    return replace(roster, nodes=nodes, activity=activity)
