"""Looks a name up in a table, or imports the object that `"package.module:function"` names."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from fedsim.errors import WrongInput

T = TypeVar("T")


def lookup(key: str, name: str, table: Mapping[str, T], takes: str = "") -> T:
    """Return `table[name]`, or the object behind `"package.module:function"`.

    `key` is the config key that held the name; only the error uses it. `takes` lists the arguments
    that user code will be called with. Raises WrongInput when the name is not in the table or
    cannot be imported.
    """
    if is_own_code(name):
        return import_object(key, name, takes)
    if name in table:
        return table[name]
    raise WrongInput(
        f"{key} = {name!r} is not known; choose one of {', '.join(sorted(table))}"
        f' or name your own code as "package.module:function"{suggestion(name, table)}',
        key,
    )


def is_own_code(name: str) -> bool:
    """Whether the name points to user code rather than to an entry of a table."""
    return ":" in name


def import_object(key: str, name: str, takes: str = "") -> Any:
    """Import the function that `"package.module:function"` names; `takes` lists what it must take.

    Raises WrongInput.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise WrongInput(
            f"{key} = {name!r}: the module {module_name!r} could not be imported ({error}); "
            "start the command in the folder that holds it",
            key,
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise WrongInput(
            f"{key} = {name!r}: the module {module_name!r} has no function {attribute!r}", key
        )
    if takes:
        check_takes(f"{key} = {name!r}", found, takes)
    return found


def check_takes(what: str, function: Callable[..., Any], takes: str) -> None:
    """Refuse a function that cannot be called with these positional arguments.

    Raises WrongInput.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell
        return
    try:
        signature.bind(*listed(takes))
    except TypeError:
        found = ", ".join(signature.parameters)
        raise WrongInput(f"{what} must take ({takes}), but takes ({found})") from None


def listed(text: str) -> list[str]:
    """Return the parts of a setting that lists names with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_names(key: str, text: str, known: Iterable[str], own: bool = False) -> list[str]:
    """Return the names that a setting lists. Raises WrongInput for an unknown one.

    With `own`, names of user code are accepted; `import_object` looks them up.
    """
    names = listed(text)
    known = list(known)
    door = ' or name your own code as "package.module:function"' if own else ""
    for name in names:
        if name not in known and not (own and is_own_code(name)):
            raise WrongInput(
                f"{key} names {name!r}; choose among "
                f"{', '.join(known)}{door}{suggestion(name, known)}",
                key,
            )
    return names


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
