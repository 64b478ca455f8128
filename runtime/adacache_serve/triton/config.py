"""The config.pbtxt of a model: its inputs, its outputs and its parameters."""

from collections.abc import Mapping
from pathlib import Path

from adacache_engines.backends import BACKENDS
from adacache_engines.contract.options import options_of
from adacache_engines.errors import InputError
from adacache_runtime.commands.options import opening_from_texts
from adacache_serve.settings import Settings

MODEL = "bundle"  # the folder beside model.py, and the worker's name of the model
# a request's inputs, which are fields of an order, with Triton's types; only the first is required
INPUTS: Mapping[str, str] = {
    "prompt": "TYPE_STRING",
    "negative_prompt": "TYPE_STRING",
    "size": "TYPE_STRING",
    "aspect": "TYPE_STRING",
    "seconds": "TYPE_FP64",
    "frames": "TYPE_INT64",
    "seed": "TYPE_INT64",
    "steps": "TYPE_INT64",
    "sampler": "TYPE_STRING",
    "guidance": "TYPE_FP64",
    "guidance_2": "TYPE_FP64",
    "policy": "TYPE_STRING",
    "image": "TYPE_STRING",  # the content of an image file
    "image_at": "TYPE_INT64",
    "priority": "TYPE_INT64",
}
# types and dimensions of the outputs; a response has either progress, or all others and is the last
OUTPUTS: Mapping[str, tuple[str, int]] = {
    "progress": ("TYPE_STRING", 1),
    "video": ("TYPE_UINT8", -1),
    "media_type": ("TYPE_STRING", 1),
    "seed": ("TYPE_INT64", 1),
    "trace": ("TYPE_STRING", 1),
}
# parameters of config.pbtxt that are whole numbers, and their defaults; the others say how the bundle is opened.
# The names are those of adacache-serve's options.
NUMBERS: Mapping[str, int] = {
    "in_flight": 4,
    "memory_budget": 0,
    "max_pixels": Settings.max_pixels,
    "max_steps": Settings.max_steps,
}


def parameters(backend: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that a new config.pbtxt has: all that have a default, by their names.

    Args:
        backend: name of the backend that runs the bundle.
        chosen: options of that backend that are not at their default.
    """
    defaults = {name: option.default for name, option in options_of(BACKENDS[backend]).items()}
    options = {name: str(value).lower() for name, value in defaults.items() if value is not None}
    numbers = {name: str(value) for name, value in NUMBERS.items()}
    opening = {"text_device": "backend", "expert_offload": "false"}
    return {"backend": backend, **options, **chosen, **opening, **numbers}


def settings_of(given: Mapping[str, str]) -> Settings:
    """Return the worker's settings, by the parameters of a config.pbtxt; those that are missing keep their defaults.

    ``memory_budget`` is in MB, 0 = what is free; ``weight_budget`` is in MB, too.

    Raises:
        InputError: a parameter is unknown, or its value is not possible.
    """
    numbers = dict(NUMBERS)
    texts: dict[str, str] = {}
    for name, value in given.items():
        if name not in NUMBERS:
            texts[name] = value
            continue
        least = 0 if name == "memory_budget" else 1
        if not (value.isascii() and value.isdecimal() and int(value) >= least):
            raise InputError(
                f"parameter {name} in config.pbtxt is {value!r}; expected a whole number of {least} or more"
            )
        numbers[name] = int(value)
    try:
        opening = opening_from_texts(texts)
    except InputError as error:
        raise InputError(f"parameters in config.pbtxt: {error}") from error
    return Settings(
        Path(),
        **opening,
        in_flight=numbers["in_flight"],
        memory_budget=numbers["memory_budget"] * 10**6 or None,
        max_pixels=numbers["max_pixels"],
        max_steps=numbers["max_steps"],
    )
