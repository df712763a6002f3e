"""`fedsim config`: the settings as a JSON schema for editors, or as a commented TOML."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from fedsim.config import Config, Section
from fedsim.errors import WrongInput

NAMES = "{names}"
BOUNDS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}


def config(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema, for editors.")
    ] = False,
    defaults: Annotated[
        bool,
        typer.Option(
            "--defaults", help="Print every setting with its default, meaning and bounds."
        ),
    ] = False,
) -> None:
    """Print what can be set: `--schema` as a JSON schema, `--defaults` as a TOML file with
    comments.
    """
    if schema == defaults:
        raise WrongInput("fedsim config wants one of --schema and --defaults")
    print(
        json.dumps(json_schema(), indent=2) if schema else commented(), end="\n" if schema else ""
    )


def names_of(section: str, key: str) -> str:
    """Return the names that a key can take, from the table that holds them."""
    from fedsim.app.audits.membership.views import VIEWS
    from fedsim.app.audits.schedule import EVALUATORS
    from fedsim.app.server.trackers import TRACKERS
    from fedsim.audit.canary_patterns import TEMPLATES
    from fedsim.data.federation import SOURCES
    from fedsim.data.partitions.assign import RULES
    from fedsim.models import MODELS
    from fedsim.models.example_metrics import METRICS
    from strategies.aggregation import AGGREGATORS, averages
    from strategies.selection import SELECTORS

    tables: dict[str, Iterable[str]] = {
        "aggregation.rule": AGGREGATORS,
        "aggregation.step": averages(),
        "audit.evaluators": EVALUATORS,
        "audit.view": VIEWS,
        "canary.pattern": TEMPLATES,
        "data.source": SOURCES,
        "evaluation.metrics": METRICS,
        "model.name": MODELS,
        "partition.name": RULES,
        "place.trackers": TRACKERS,
        "selection.rule": SELECTORS,
    }
    return " | ".join(tables[f"{section}.{key}"])


def described(section: str, key: str, description: str) -> str:
    """Return a description together with the names from its table."""
    return (
        description.replace(NAMES, names_of(section, key)) if NAMES in description else description
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of an experiment's TOML."""
    found = Config.model_json_schema(by_alias=True)
    found["description"] = found["description"].partition("\n")[0]  # drops the Python example
    for name, field in Config.model_fields.items():
        section = _section(field)
        properties = found["$defs"][section.__name__]["properties"] if section else {}
        for key, about in properties.items():
            about["description"] = described(name, key, about["description"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | found


def commented() -> str:
    """Return a TOML file of all defaults, with comments on meaning and bounds."""
    tops = {name: field for name, field in Config.model_fields.items() if _section(field) is None}
    parts = ["\n".join(line for name, field in tops.items() for line in _setting("", name, field))]
    for name, field in Config.model_fields.items():
        section = _section(field)
        if section is not None:
            lines = [f"# {_first_line(section)}", f"[{name}]"]
            parts.append("\n".join([*lines, *_settings(name, section)]))
    return "\n\n".join(parts) + "\n"


def bounds(field: FieldInfo) -> str:
    """Return the values that a setting may have, in words; "" where its type is the only limit."""
    if get_origin(field.annotation) is Literal:
        return " | ".join(str(choice) or '""' for choice in get_args(field.annotation))
    limits = [
        f"{words} {getattr(limit, name):g}"
        for limit in field.metadata
        for kind, (words, name) in BOUNDS.items()
        if isinstance(limit, kind)
    ]
    return ", ".join(limits)


def _settings(name: str, section: type[Section]) -> list[str]:
    return [
        line for key, field in section.model_fields.items() for line in _setting(name, key, field)
    ]


def _setting(section: str, name: str, field: FieldInfo) -> list[str]:
    allowed = bounds(field)
    comment = f"# {described(section, name, field.description or '')}" + (
        f"; {allowed}" if allowed else ""
    )
    key = field.alias or name
    return [comment, tomli_w.dumps({key: field.default}).rstrip("\n")]


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").splitlines()[0]
