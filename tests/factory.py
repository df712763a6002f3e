"""Configs that tests share."""

from collections.abc import Mapping

from fedsim.config import Config, from_flat


def configured(base: Mapping[str, object], **changes: object) -> Config:
    """Return a config of settings by name; in `changes` a setting is written `section__key`."""
    return from_flat(
        {**base, **{name.replace("__", "."): value for name, value in changes.items()}}
    )
