"""The delta of a run: from the config, or from the public number of protected units."""

from dataclasses import dataclass

from fedsim.config import Config
from fedsim.data.activity import public_activity
from fedsim.data.federation import FederatedDataset
from fedsim.privacy.claims import target_delta


@dataclass(frozen=True)
class Delta:
    """A run's delta, and the rule that gave it."""

    value: float
    rule: str

    @property
    def warning(self) -> str:
        """The warning if delta is too large for the protected units, else ""."""
        return f"dp.delta = {self.value:g} {self.rule}" if "WARNING" in self.rule else ""


def delta_of(config: Config, federation: FederatedDataset) -> Delta:
    """Return the delta of a run over this federation."""
    return Delta(*target_delta(config, protected_units(config, federation)))


def protected_units(config: Config, federation: FederatedDataset) -> int:
    """Return the public number of units: devices with examples, or an upper bound on examples."""
    public = public_activity(federation.activity, config.data.activity_public)
    if config.dp.unit == "device":
        return int((public > 0).sum())
    if config.data.activity_public == "power2":
        return int((2 * public - 1).clip(min=0).sum())
    return int(public.sum())
