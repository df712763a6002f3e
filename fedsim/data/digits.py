"""The handwritten digits that come with scikit-learn: a real image set without any download.

1,797 images of 8 × 8 pixels from 43 writers (Alpaydin and Kaynak, 1998, UCI "Optical Recognition of
Handwritten Digits", the test part). The writers are not told, so devices are a seeded equal split.
"""

import hashlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fedsim.config import Data
from fedsim.data.records import Records
from fedsim.data.table import Table
from fedsim.errors import WrongInput
from fedsim.seeds import generator

LARGEST_PIXEL = 16.0


def digits(data: Data, data_dir: Path | None) -> Table:
    """Return the digits on `data.devices` devices; `data.test_share` of each are for testing.

    Raises WrongInput for a task other than `image`, and for more devices than images.
    """
    if data.task != "image":
        raise WrongInput(f"data.source = 'digits' has images, got data.task = {data.task!r}; want image")
    found = load_digits()
    count = len(found.target)
    if data.devices > count:
        raise WrongInput(f"data.devices = {data.devices} is more than the {count} digits")
    owners = generator(data.seed, "digits").permutation(np.arange(count) % data.devices)
    width = len(str(data.devices - 1))
    columns = {
        "image": (found.images / LARGEST_PIXEL).astype(np.float32),
        "label": found.target.astype(str),
        "device": np.array([f"d{owner:0{width}d}" for owner in owners], dtype=np.str_),
    }
    fingerprint = {"digits": hashlib.sha256(found.data.tobytes() + found.target.tobytes()).hexdigest()}
    return Table(data, {"train": Records(columns, count, "digits")}, fingerprint)
