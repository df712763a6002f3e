"""Looks a name up in a table, or imports the object that `"package.module:function"` names."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from fedsim.errors import WrongInput

T = TypeVar("T")


def lookup(key: str, name: str, table: Mapping[str, T]) -> T:
    """Return `table[name]`, or the object behind `"package.module:function"`.

    `key` is the config key that held the name; it only serves the error message.
    Raises WrongInput when the name is not in the table or cannot be imported.
    """
    if is_own_code(name):
        return import_object(key, name)
    if name in table:
        return table[name]
    raise WrongInput(
        f"{key} = {name!r} is not known; choose one of {', '.join(sorted(table))}"
        f' or name your own code as "package.module:function"{suggestion(name, table)}'
    )


def is_own_code(name: str) -> bool:
    """Whether the name points to user code rather than to an entry of a table."""
    return ":" in name


def import_object(key: str, name: str) -> Any:
    """Import the object that `"package.module:function"` names. Raises WrongInput."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise WrongInput(
            f"{key} = {name!r}: the module {module_name!r} could not be imported ({error}); "
            "start the command in the folder that holds it"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise WrongInput(f"{key} = {name!r}: the module {module_name!r} has no function {attribute!r}")
    return found


def listed(text: str) -> list[str]:
    """Return the parts of a setting that lists names with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_names(key: str, text: str, known: Iterable[str], own: bool = False) -> list[str]:
    """Return the names that a setting lists. Raises WrongInput for an unknown one.

    With `own`, names of own code are let through; `function_of_one` looks them up.
    """
    names, known = listed(text), list(known)
    door = ' or name your own code as "package.module:function"' if own else ""
    for name in names:
        if name not in known and not (own and is_own_code(name)):
            raise WrongInput(
                f"{key} names {name!r}; choose among {', '.join(known)}{door}{suggestion(name, known)}"
            )
    return names


def function_of_one(key: str, name: str, wanted: str) -> Callable[[Any], Any]:
    """Import own code that takes one argument. Raises WrongInput where it takes others.

    `wanted` goes on the sentence "has to be a function of".
    """
    found = import_object(key, name)
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise WrongInput(
            f"{key} = {name!r} has to be a function of {wanted}; its arguments are {inspect.signature(found)}"
        ) from error
    return found


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
