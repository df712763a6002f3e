"""Audits that a run could not do, refused before it trains."""

from collections.abc import Sequence

from fedsim.app.audits.membership.views import VIEWS
from fedsim.app.audits.replay import REPLAYED, check_seeded, check_single
from fedsim.app.audits.schedule import evaluators
from fedsim.audit.attacks import ATTACKS
from fedsim.audit.quantile import QUANTILE
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.names import check_names


def check_audits(config: Config, real: bool) -> None:
    """Refuse audits that could not be done, before anything is written. Raises WrongInput."""
    names = evaluators(config)
    audit, canary = config.audit, config.canary
    changed = audit.coins != "none" or audit.mislabelled or audit.canary_devices or canary.count
    if real and (names or changed):
        raise WrongInput(
            "audits change training records and look at them, and real nodes keep theirs to themselves; "
            "leave [audit] and [canary] at their defaults here, and audit the same experiment in simulation"
        )
    if names and config.audit.references % 2:
        raise WrongInput(
            f"audit.references = {config.audit.references}: references come in pairs; use an even number"
        )
    if "bounds" in names and not bounds_possible(config):
        raise WrongInput(
            'audit.evaluators = "bounds" needs audit.coins, or a [dp] unit without a secure sum, or '
            "audit.canary_devices"
        )
    if config.audit.canary_devices and (config.dp.unit != "device" or config.dp.trust == "secure_sum"):
        raise WrongInput(
            "audit.canary_devices send directions of the norm that dp.clip_norm allows a device; "
            'set dp.unit = "device" and dp.trust = "central"'
        )
    if "membership" in names:
        check_views(config)
    if "membership" in names and config.audit.attacks != "auto":
        check_names("audit.attacks", config.audit.attacks, (*ATTACKS, QUANTILE))
    if "canary" in names:
        check_canary_views(config)
    if "canary" in names and not config.canary.count:
        raise WrongInput(
            "audit.evaluators names 'canary', and canary.count = 0 plants none; set canary.count and "
            'canary.pattern = "pin", for one'
        )


def bounds_possible(config: Config) -> bool:
    """Whether any lower bound on epsilon could be had."""
    crafted = config.dp.unit != "none" and config.dp.trust != "secure_sum"
    return config.audit.coins != "none" or crafted or bool(config.audit.canary_devices)


def views_of(config: Config) -> list[str]:
    """Return the views by name. Raises WrongInput."""
    return check_names("audit.view", config.audit.view, VIEWS)


def check_views(config: Config) -> None:
    """Refuse views that this run cannot give, before it trains. Raises WrongInput."""
    names = views_of(config)
    check_past(config, [name for name in names if name in (*REPLAYED, "rounds")])
    if "sums" in names and config.audit.coins == "device":
        raise WrongInput(
            'audit.view names "sums", whose game is about records of the devices that trained; set '
            'audit.coins = "record" or "none"'
        )
    if "releases" in names and config.stream.mode != "continual":
        raise WrongInput(
            'audit.view names "releases", the last model of each period; set stream.mode = "continual", or '
            'audit.view = "rounds"'
        )


def check_past(config: Config, names: Sequence[str]) -> None:
    """Refuse views of past rounds where a run keeps no models or cannot be replayed. Raises WrongInput."""
    if names and config.place.keep != "all":
        raise WrongInput(
            f"audit.view names {names[0]!r}, which looks at the checkpoint of every round, and place.keep = "
            f'{config.place.keep!r} drops them; set place.keep = "all" before training'
        )
    if "updates" in names:
        check_single(config)
    if set(names) & set(REPLAYED):
        check_seeded(config, config.dp.noise_source)


def check_canary_views(config: Config) -> None:
    """Refuse views that the run cannot give, before it trains. Raises WrongInput."""
    check_past(config, [name for name in views_of(config) if name in REPLAYED])
