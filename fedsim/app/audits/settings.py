"""The check of audits before a run trains."""

from fedsim.app.audits.schedule import audit_named, evaluators
from fedsim.config import Config
from fedsim.errors import WrongInput


def check_audits(config: Config, real: bool) -> None:
    """Refuse audits that the run cannot do, before anything is written. Raises WrongInput."""
    names = evaluators(config)
    audit = config.audit
    canary = config.canary
    changed = audit.coins != "none" or audit.mislabelled or audit.canary_devices or canary.count
    if real and (names or changed):
        raise WrongInput(
            "audits change training records and look at them, and real nodes keep theirs to "
            "themselves; leave [audit] and [canary] at their defaults here, and audit the same "
            "experiment in simulation"
        )
    if names and audit.references % 2:
        raise WrongInput(
            f"audit.references = {audit.references}: references come in pairs; use an even number"
        )
    if audit.canary_devices and (config.dp.unit != "device" or config.dp.trust == "secure_sum"):
        raise WrongInput(
            "audit.canary_devices send directions of the norm that dp.clip_norm allows a device; "
            'set dp.unit = "device" and dp.trust = "central"'
        )
    for name in names:
        audit_named(name).check(config)
