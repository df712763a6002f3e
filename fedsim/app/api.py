"""Runs from Python: what `fedsim run` does, without a terminal."""

from collections.abc import Mapping
from pathlib import Path

from fedsim.app.engines.local import run_local
from fedsim.app.rundir.files import Watch
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, Scalar, from_flat, load, to_flat


def run(
    config: Config | Mapping[str, Scalar] | str | Path,
    settings: Mapping[str, Scalar] | None = None,
    fresh: bool = False,
    watch: Watch = lambda row: None,
) -> RunDir:
    """Do a run in this process, or resume an unfinished one; return its folder.

    `config` is a `Config`, dotted keys such as `{"train.rounds": 5}`, or the path of an
    experiment's TOML; `settings` are dotted keys that override it. A finished run is returned as it
    is. `fresh` starts it over and sets the old one aside. `watch` receives each round's row.
    Raises WrongInput before anything is written, RunFailed later.

    >>> from fedsim import run
    >>> small = {"data.devices": 20, "data.examples": 200}
    >>> small |= {"model.embedding": 8, "selection.cohort": 5}
    >>> done = run(small, {"train.rounds": 3})
    >>> [row["round"] for row in done.rows()]
    [1, 2, 3]
    >>> done.summary["status"]
    'completed'
    """
    return run_local(
        from_flat(to_flat(as_config(config)) | dict(settings or {})), fresh=fresh, watch=watch
    )


def as_config(config: Config | Mapping[str, Scalar] | str | Path) -> Config:
    """Return the config, whatever form it was given in. Raises WrongInput."""
    if isinstance(config, Config):
        return config
    return load(Path(config)) if isinstance(config, str | Path) else from_flat(config)
