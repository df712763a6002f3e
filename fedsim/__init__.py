"""A privacy-preserving federated learning simulator that is also deployable, on Flower.

`import fedsim` offers every name of `OFFERED`. A module is imported at the first use of its name,
because torch and Flower take seconds. `help(fedsim.epsilon)` shows an example; each example is run
as a test.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedsim.version import __version__ as __version__

if TYPE_CHECKING:
    from clients.clipping import clipped_gradients as clipped_gradients
    from clients.example_clip import Clip as Clip
    from fedsim.app.api import run as run
    from fedsim.app.rundir.run_dir import RunDir as RunDir
    from fedsim.app.rundir.runs_table import load_runs as load_runs
    from fedsim.audit.attacks import lira as lira
    from fedsim.audit.attacks import loss as loss
    from fedsim.audit.attacks import ratio as ratio
    from fedsim.audit.blind_baseline import blind_auc as blind_auc
    from fedsim.audit.bounds import two_worlds as two_worlds
    from fedsim.audit.exposure import exposure as exposure
    from fedsim.audit.exposure import rank as rank
    from fedsim.audit.one_run import one_run as one_run
    from fedsim.audit.one_shot import one_shot as one_shot
    from fedsim.audit.roc import auc as auc
    from fedsim.audit.roc import tpr_at as tpr_at
    from fedsim.audit.scores import Target as Target
    from fedsim.audit.scores import predictions as predictions
    from fedsim.config import Config as Config
    from fedsim.config import load as load
    from fedsim.errors import RunFailed as RunFailed
    from fedsim.errors import WrongInput as WrongInput
    from fedsim.privacy.accounting import Event as Event
    from fedsim.privacy.accounting import delta as delta
    from fedsim.privacy.accounting import epsilon as epsilon
    from fedsim.privacy.accounting import power as power
    from fedsim.privacy.ledger import Ledger as Ledger
    from fedsim.privacy.planning import calibrate as calibrate

OFFERED = {
    # runs
    "run": "fedsim.app.api",
    "load_runs": "fedsim.app.rundir.runs_table",
    "RunDir": "fedsim.app.rundir.run_dir",
    "Config": "fedsim.config",
    "load": "fedsim.config",
    "WrongInput": "fedsim.errors",
    "RunFailed": "fedsim.errors",
    # gradients clipped for each example
    "clipped_gradients": "clients.clipping",
    "Clip": "clients.example_clip",
    # membership
    "predictions": "fedsim.audit.scores",
    "Target": "fedsim.audit.scores",
    "loss": "fedsim.audit.attacks",
    "ratio": "fedsim.audit.attacks",
    "lira": "fedsim.audit.attacks",
    "auc": "fedsim.audit.roc",
    "tpr_at": "fedsim.audit.roc",
    "blind_auc": "fedsim.audit.blind_baseline",
    # canaries
    "rank": "fedsim.audit.exposure",
    "exposure": "fedsim.audit.exposure",
    # lower bounds on epsilon
    "two_worlds": "fedsim.audit.bounds",
    "one_run": "fedsim.audit.one_run",
    "one_shot": "fedsim.audit.one_shot",
    # what is promised
    "Event": "fedsim.privacy.accounting",
    "epsilon": "fedsim.privacy.accounting",
    "delta": "fedsim.privacy.accounting",
    "power": "fedsim.privacy.accounting",
    "Ledger": "fedsim.privacy.ledger",
    "calibrate": "fedsim.privacy.planning",
}
"""Every public name, and the module that has it."""

__all__ = [*OFFERED, "__version__"]


if not TYPE_CHECKING:  # or a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """Import the module of an offered name at its first use."""
        if name not in OFFERED:
            raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
        return getattr(import_module(OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *OFFERED})
