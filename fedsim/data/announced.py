"""A federation whose examples stay on its devices.

Nodes announce their devices; the server tests on files of its own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.config import Data
from fedsim.data.cleaning import COLUMNS
from fedsim.data.local_files import files
from fedsim.data.table import public_part
from fedsim.errors import WrongInput
from fedsim.types import DeviceId, Examples, Spec


@dataclass
class Announced:
    """Devices as nodes announce them: a `FederatedDataset` without training examples."""

    spec: Spec
    devices: NDArray[np.str_]
    activity: NDArray[np.int64]
    """Public activity over all periods; the server knows no more."""
    test: Examples | None
    fingerprint: dict[str, str]
    test_time: NDArray[np.float64] | None = None
    """Seconds of each test record."""
    dev: Examples | None = None
    notes: tuple[str, ...] = (
        "The examples stay on the nodes; sizes are those that they announce.",
    )

    def train(self, device: DeviceId) -> Examples:
        raise WrongInput(f"the examples of device {device!r} are on its node and nowhere else")


def announced_federation(
    data: Data, data_dir: Path | None, devices: NDArray[np.str_], activity: NDArray[np.int64]
) -> Announced:
    """Return the federation as the server sees it.

    Its test examples are those of `data.test`, if it names any. Raises WrongInput where names and
    ids would differ from node to node.
    """
    check_public(data)
    records = None
    fingerprint = {}
    if data.test:
        own = files(data.model_copy(update={"train": data.test, "dev": "", "test": ""}), data_dir)
        records = own.records["train"]
        fingerprint = own.fingerprint
    spec, test, test_time = public_part(data, records)
    return Announced(spec, devices, activity, test, fingerprint, test_time)


def possible_activity(announced: Announced) -> NDArray[np.int64]:
    """Return in one array all public activities ("power2") that devices may have in a period."""
    most = announced.activity
    return np.concatenate(
        [most >> halved for halved in range(int(most.max(initial=1)).bit_length())]
    )


def own_part(data: Data) -> Data:
    """Return the settings of what a real node reads: its training files.

    Raises WrongInput as `announced_federation` does.
    """
    check_public(data)
    return data.model_copy(update={"dev": "", "test": ""})


def check_public(data: Data) -> None:
    """Refuse settings under which nodes would give different ids to one name. Raises WrongInput."""
    wanted = COLUMNS[data.task]
    if "tokens" in wanted and data.vocabulary != "hashed":
        raise WrongInput(
            'data.vocabulary = "training" would make other ids of the words of each node; real '
            'nodes want data.vocabulary = "hashed"'
        )
    for role, key in (("label", "labels"), ("tags", "tags")):
        if role in wanted and not getattr(data, key):
            raise WrongInput(
                f"real nodes want data.{key}, the names that all of them share, with commas "
                "between; a node knows only its own"
            )
