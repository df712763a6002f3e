"""A trained model as plain files without pickle: parameters as npz, the rest as JSON."""

import json
from pathlib import Path

import numpy as np

from fedsim.app.rundir.files import make_folder, read_json, replaced, write_json
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import to_flat
from fedsim.errors import WrongInput
from fedsim.version import __version__


def export_model(run: RunDir, target: Path) -> Path:
    """Write `model.npz` and `model.json` of the run's last checkpoint to `target`; return it.

    The JSON holds the config that the model was built from, and the round. It lists labels, tags
    and words in the order of their ids. Raises WrongInput before the first checkpoint.
    """
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        raise WrongInput(f"{run.path} has no checkpoint yet; run the experiment first")
    make_folder(target)
    with replaced(target / "model.npz") as path, path.open("wb") as stream:
        np.savez(stream, **{n: p.numpy() for n, p in checkpoint.params.items()})  # type: ignore[arg-type]
    description = {
        "fedsim": __version__,
        "round": checkpoint.round,
        "parameters": {name: list(p.shape) for name, p in checkpoint.params.items()},
        "spec": read_json(run.path / "spec.json"),
        "config": to_flat(run.config),
    }
    write_json(target / "model.json", json.loads(json.dumps(description)))
    return target
