"""The application: the only place that composes data, strategies, clients and evaluation."""

from importlib.util import find_spec
from pathlib import Path


def check_side_by_side() -> None:
    """Raise ImportError when `strategies` or `clients` is somebody else's package.

    Distributions of these names exist on the public index and would shadow ours.
    """
    ours = Path(__file__).parents[2]
    for name in ("strategies", "clients"):
        spec = find_spec(name)
        found = Path(str(spec.origin)).parents[1] if spec and spec.origin else None
        if found != ours:
            raise ImportError(
                f"the package {name!r} of this project should lie in {ours} beside fedsim, but Python "
                f"finds {spec.origin if spec else 'none'}; uninstall the other one (pip uninstall {name}) "
                "and start in the project's folder"
            )


check_side_by_side()
