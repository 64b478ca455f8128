"""The fields of a ``config.json`` as a pydantic model, with all problems told at once."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from adacache_engines.errors import CheckpointError
from adacache_engines.printable import first_of

Config = TypeVar("Config", bound=BaseModel)


def parsed_config(kind: type[Config], fields: Mapping[str, Any]) -> Config:
    """Return the fields of a ``config.json`` as an object of its class.

    Raises:
        CheckpointError: lists all fields that are missing or not supported.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise CheckpointError(first_of(problems, "; ")) from error
