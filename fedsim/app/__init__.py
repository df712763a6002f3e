"""The application: the only place that composes data, strategies, clients and evaluation.

Notebooks and scripts use `run(config) -> RunDir` and `load_runs(path) -> pandas.DataFrame`.
`RunDir.model() -> torch.nn.Module` gives a run's trained model.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.app.api import run as run
    from fedsim.app.rundir.run_dir import RunDir as RunDir
    from fedsim.app.rundir.runs_table import load_runs as load_runs

OFFERED = {
    "run": "fedsim.app.api",
    "load_runs": "fedsim.app.rundir.runs_table",
    "RunDir": "fedsim.app.rundir.run_dir",
}
"""Name -> the module that has it. It is imported at first use, because torch is heavy."""


def __getattr__(name: str) -> Any:
    """Import an offered name at its first use."""
    if name not in OFFERED:
        raise AttributeError(f"module 'fedsim.app' has no attribute {name!r}")
    return getattr(import_module(OFFERED[name]), name)


def check_side_by_side() -> None:
    """Raise ImportError when `strategies` or `clients` is another project's package.

    Distributions of these names exist on the public index and would shadow ours.
    """
    ours = Path(__file__).parents[2]
    for name in ("strategies", "clients"):
        spec = find_spec(name)
        found = Path(str(spec.origin)).parents[1] if spec and spec.origin else None
        if found != ours:
            raise ImportError(
                f"the package {name!r} of this project should lie in {ours} beside fedsim, but "
                f"Python finds {spec.origin if spec else 'none'}; uninstall the other one (pip "
                f"uninstall {name}) and start in the project's folder"
            )


check_side_by_side()
