"""Options of a command line that are derived from the fields of a dataclass."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from adacache_engines.errors import InputError
from adacache_export.options import FLAG, HELP, METAVAR, PARSE


def add_fields(parser: argparse.ArgumentParser | argparse._ArgumentGroup, cls: type[Any]) -> None:
    """Add an option for each field of a class whose fields have the metadata of :func:`adacache_export.options.option`.

    An option that is not given is None, whatever the field's default is.
    """
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        metadata = field.metadata
        settings: dict[str, Any] = {"dest": field.name, "help": metadata[HELP], "default": None}
        kind = _without_none(hints[field.name])
        if kind is bool:
            settings["action"] = "store_true"
        else:
            settings["metavar"] = metadata[METAVAR]
            if get_origin(kind) is tuple:
                settings["action"] = "append"
            elif metadata[PARSE]:
                settings["type"] = _argument(metadata[PARSE])
            elif get_origin(kind) is Literal:
                settings["choices"] = get_args(kind)
            elif kind is Path:
                settings["type"] = Path
        parser.add_argument(flag_of(cls, field.name), **settings)


def given(options: argparse.Namespace, cls: type[Any]) -> dict[str, Any]:
    """Return the values of a class's fields that the command line gave, by the names of the fields."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(cls)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value}


def flag_of(cls: type[Any], name: str) -> str:
    """Return the option of a field, such as ``--text-encoder``."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return "--" + (field.metadata[FLAG] or name).replace("_", "-")


def flags(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Return those of the named options that were given, such as ``--output``."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(hint) else hint


def _argument(parse: Callable[[str], str]) -> Callable[[str], str]:
    def typed(text: str) -> str:
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return typed
