"""The handwritten digits that come with scikit-learn: a real image set without any download.

1,797 images of 8 × 8 pixels from 43 writers (Alpaydin and Kaynak, 1998, UCI "Optical Recognition of
Handwritten Digits", the test part). The set does not name the writers, so `[partition]` makes the
devices.
"""

import hashlib
from pathlib import Path

import numpy as np

from fedsim.config import Data
from fedsim.data.records import Records, Splits
from fedsim.errors import WrongInput

LARGEST_PIXEL = 16.0


def digits(data: Data, data_dir: Path | None) -> Splits:
    """Return the digits as training records; `data.test_share` holds test examples out of them.

    Raises WrongInput for a task other than `image`.
    """
    if data.task != "image":
        raise WrongInput(
            f"data.source = 'digits' has images, got data.task = {data.task!r}; want image"
        )
    from sklearn.datasets import load_digits  # takes seconds; only this source needs it

    found = load_digits()
    columns = {
        "image": (found.images / LARGEST_PIXEL).astype(np.float32),
        "label": found.target.astype(str),
    }
    fingerprint = {
        "digits": hashlib.sha256(found.data.tobytes() + found.target.tobytes()).hexdigest()
    }
    return Splits(
        {"train": Records(columns, len(found.target), "digits", ("image", "label"))}, fingerprint
    )
