"""The backends that commands can choose: a name for each, and the value that opens it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from adacache_engines.contract.engine import BackendConfig
from adacache_engines.contract.options import options_of
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_engines.tensorrt.backend import TensorRT

# Every command's options are derived from the fields of these values. The first is the default.
BACKENDS: dict[str, BackendConfig] = {
    "onnxruntime": OnnxRuntime(),
    "tensorrt-rtx": TensorRT("tensorrt-rtx"),
    "tensorrt": TensorRT("tensorrt"),
}


def default_backend() -> str:
    """Return the name of the backend that runs a bundle where none is chosen."""
    return next(iter(BACKENDS))


def check_name(name: str) -> None:
    """Check that there is a backend of this name.

    Raises:
        InputError: there is none; the message lists the known ones.
    """
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is unknown; known: {', '.join(BACKENDS)}")


def backend_from_texts(name: str, texts: Mapping[str, str]) -> BackendConfig:
    """Return the value of a backend whose options are given as text.

    Args:
        name: key of :data:`BACKENDS`.
        texts: options by the names of the value's fields; those that are missing keep their defaults.

    Raises:
        InputError: there is no backend of this name, it does not have one of the options, or an option's value is not
            possible.
    """
    check_name(name)
    value, options = BACKENDS[name], options_of(BACKENDS[name])
    given: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in options:
            raise InputError(
                f"backend {name} has no option {key!r}; it has {', '.join(options) or 'none'}: "
                "leave the option out, or choose another backend"
            )
        try:
            given[key] = options[key].parse(text)
        except ValueError as error:
            raise InputError(f"option {key} of backend {name}: {error}") from error
    return dataclasses.replace(value, **given)  # type: ignore[type-var]
