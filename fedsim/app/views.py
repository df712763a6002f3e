"""What membership attacks look at: the table from a view's name to its rows."""

from collections.abc import Sequence

from fedsim.app.audits import Audited, Evaluator
from fedsim.app.fresh_records import device_rows
from fedsim.app.kept_models import release_rows, round_rows
from fedsim.app.membership import final_rows
from fedsim.app.replay import check_seeded, check_single
from fedsim.app.rundir import Row
from fedsim.app.update_attacks import sum_rows, update_rows
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.names import suggestion

VIEWS: dict[str, tuple[Evaluator, ...]] = {
    "final": (final_rows, device_rows),
    "rounds": (round_rows,),
    "updates": (update_rows,),
    "sums": (sum_rows,),
    "releases": (release_rows,),
}
REPLAYED = ("updates", "sums")


def membership_rows(audited: Audited) -> list[Row]:
    """Return the rows of every view that the config names, in the order of the table."""
    names = views_of(audited.config)
    return [row for name in VIEWS if name in names for rows in VIEWS[name] for row in rows(audited)]


def views_of(config: Config) -> list[str]:
    """Return the views by name. Raises WrongInput."""
    names = [name.strip() for name in config.audit.view.split(",") if name.strip()]
    for name in names:
        if name not in VIEWS:
            raise WrongInput(
                f"audit.view names {name!r}; choose among {', '.join(VIEWS)}{suggestion(name, VIEWS)}"
            )
    return names


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
