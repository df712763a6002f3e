"""A sweep: one base experiment, settings on a grid, seeds. Reads its file and builds its runs."""

import itertools
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.config import Config, Scalar, from_flat, known_keys, load, parse_setting, to_flat
from fedsim.errors import WrongInput
from fedsim.names import suggestion

Settings = dict[str, Any]
KEYS = ("base", "name", "metric", "seeds", "set", "grid", "search")
EPSILON = "epsilon"
"""Key for a target guarantee; the noise is calibrated to it, as in `fedsim calibrate`."""
MOST_RUNS = 100_000


@dataclass(frozen=True)
class Point:
    """One point on an axis: its label, and the settings that it makes together."""

    label: str
    settings: Settings


@dataclass(frozen=True)
class Axis:
    """One dimension of the grid."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file."""

    name: str
    base: Path
    fixed: Settings
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    metric: str
    """Name of the metric that is the utility; empty = the first that the runs have."""
    search: Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its point on each axis, and its whole config."""

    where: dict[str, str]
    config: Config


def load_sweep(path: Path, settings: Sequence[str] = ()) -> Sweep:
    """Read a sweep's TOML and apply `section.key=value` settings on top of its fixed ones.

    Raises WrongInput for what cannot be read or is not known.
    """
    nested = _read(path)
    unknown = [key for key in nested if key not in KEYS]
    if unknown:
        raise WrongInput(f"{path}: unknown key {unknown[0]!r}{suggestion(unknown[0], KEYS)}")
    if not isinstance(nested.get("base"), str):
        raise WrongInput(f'{path} wants base = "EXPERIMENT.toml", a path beside it')
    return Sweep(
        name=str(nested.get("name") or re.sub(r"[^\w.-]", "-", path.stem.removesuffix(".sweep"))),
        base=path.parent / nested["base"],
        fixed=_settings(nested.get("set", {})) | dict(parse_setting(s) for s in settings),
        axes=_axes(nested.get("grid", {})),
        seeds=_seeds(nested.get("seeds", [1])),
        metric=str(nested.get("metric", "")),
        search=nested.get("search", {}),
    )


def members(
    sweep: Sweep, place: Settings, calibrate: Callable[[Config, float], Config]
) -> list[Member]:
    """Return every run of the grid; seeds vary fastest. `place` holds settings of that section.

    `calibrate(config, epsilon)` gives a config with that epsilon as guarantee. Raises WrongInput.
    """
    count = math.prod(len(axis.points) for axis in sweep.axes) * len(sweep.seeds)
    if count > MOST_RUNS:
        raise WrongInput(f"{sweep.name} means {count:,} runs; a sweep has at most {MOST_RUNS:,}")
    found = []
    for points in itertools.product(*(axis.points for axis in sweep.axes)):
        where = {axis.name: point.label for axis, point in zip(sweep.axes, points, strict=True)}
        settings = {key: value for point in points for key, value in point.settings.items()}
        config = member_config(sweep, settings, place, calibrate)
        found += [Member(where, with_seed(config, seed)) for seed in sweep.seeds]
    return distinct(found)


def member_config(
    sweep: Sweep, settings: Settings, place: Settings, calibrate: Callable[[Config, float], Config]
) -> Config:
    """Return the base's config with the fixed and the given settings.

    If `epsilon` is among them, the config is calibrated to it.
    """
    wanted = sweep.fixed | settings
    epsilon = wanted.pop(EPSILON, None)
    config = from_flat(to_flat(load(sweep.base)) | wanted | place | {"name": sweep.name})
    return config if epsilon is None else calibrate(config, float(epsilon))


def with_seed(config: Config, seed: int) -> Config:
    """Return the config with another seed. Raises WrongInput for a seed out of bounds."""
    return from_flat(to_flat(config) | {"seed": seed})


def values(name: str, given: Any) -> list[Scalar]:
    """Return the values of a list, of {from, to, step} or of {log_from, log_to, count}."""
    if isinstance(given, list):
        return given
    if isinstance(given, Mapping) and given.keys() == {"from", "to", "step"}:
        return _linear(name, **{f"{key}_": number for key, number in given.items()})
    if isinstance(given, Mapping) and given.keys() == {"log_from", "log_to", "count"}:
        return _logarithmic(name, **given)
    raise WrongInput(
        f"{name} = {given!r} is no grid: give a list, {{from, to, step}} or {{log_from, log_to, "
        "count}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise WrongInput(f"the sweep file {str(path)!r} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WrongInput(f"the sweep file {str(path)!r} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise WrongInput(f"{path} is not valid TOML: {error}") from error


def _settings(nested: Mapping[str, Any]) -> Settings:
    """Return dotted keys -> scalars. Raises WrongInput for keys that no config has."""
    flat = dict(_leaves(nested))
    for key, value in flat.items():
        _check_key(key)
        if not isinstance(value, str | int | float):
            raise WrongInput(f"{key} = {value!r}: a setting is a text, a number, true or false")
    return flat


def _axes(grid: Mapping[str, Any]) -> tuple[Axis, ...]:
    axes = tuple(_axis(name, given) for name, given in _leaves(grid))
    sources: dict[str, str] = {}
    for axis in axes:
        for key in {key for point in axis.points for key in point.settings}:
            if key in sources:
                raise WrongInput(
                    f"{key} is set by two axes of the grid, {sources[key]} and {axis.name}"
                )
            sources[key] = axis.name
    return axes


def _axis(name: str, given: Any) -> Axis:
    if isinstance(given, list) and given and all(isinstance(each, Mapping) for each in given):
        return Axis(name, tuple(_point(each) for each in given))
    _check_key(name)
    points = tuple(Point(_label(value), {name: value}) for value in values(name, given))
    if not points:
        raise WrongInput(f"{name} = [] has no value; give at least one")
    return Axis(name, points)


def _point(table: Mapping[str, Any]) -> Point:
    """Return the point that a table of settings makes; its key `label` names the point."""
    settings = _settings({key: value for key, value in table.items() if key != "label"})
    told = ", ".join(f"{key}={_label(value)}" for key, value in settings.items())
    return Point(str(table.get("label", told)), settings)


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each dotted key with its value that is not a section: a scalar, a list or a range."""
    for key, value in nested.items():
        is_range = isinstance(value, Mapping) and bool({"from", "log_from"} & value.keys())
        if isinstance(value, Mapping) and not is_range:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_key(key: str) -> None:
    if key in ("seed", "name", "schema") or key.startswith("place."):
        raise WrongInput(
            f"{key!r} is not varied here: seeds = [1, 2, 3], name and --set place.* stand apart"
        )
    if key != EPSILON and key not in known_keys():
        raise WrongInput(f"unknown config key {key!r}{suggestion(key, [EPSILON, *known_keys()])}")


def _seeds(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(seed) is int for seed in given):
        raise WrongInput(
            f"seeds = {given!r}: give a list of whole numbers, as in seeds = [1, 2, 3]"
        )
    return tuple(dict.fromkeys(given))


def _linear(name: str, from_: float, to_: float, step_: float) -> list[Scalar]:
    if not step_ > 0 or to_ < from_:
        raise WrongInput(f"{name}: a range goes up, from <= to and step > 0")
    count = math.floor((to_ - from_) / step_ + 1e-9) + 1
    whole = all(isinstance(number, int) for number in (from_, to_, step_))
    return [from_ + i * step_ if whole else round(from_ + i * step_, 12) for i in range(count)]


def _logarithmic(name: str, log_from: float, log_to: float, count: int) -> list[Scalar]:
    if not 0 < log_from < log_to or type(count) is not int or count < 2:
        raise WrongInput(f"{name}: a logarithmic range has 0 < log_from < log_to and count >= 2")
    ratio = (log_to / log_from) ** (1 / (count - 1))
    return [*(float(f"{log_from * ratio**i:.6g}") for i in range(count - 1)), float(log_to)]


def _label(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def distinct(found: list[Member]) -> list[Member]:
    """Return the members without repetitions of an earlier run."""
    first: dict[tuple[str, int], Member] = {}
    for member in found:
        first.setdefault((member.config.hash, member.config.seed), member)
    return list(first.values())
