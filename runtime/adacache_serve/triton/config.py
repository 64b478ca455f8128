"""What a model of :mod:`adacache_serve.triton.model` has in its config.pbtxt."""

from collections.abc import Mapping
from pathlib import Path

from adacache_engines.backends import ONNXRUNTIME
from adacache_engines.errors import InputError
from adacache_serve.settings import Engine, Settings

MODEL = "bundle"  # the folder beside model.py, so also what the worker calls the model
# what a request has, by Triton's types: fields of an order, the first of them required
INPUTS: Mapping[str, str] = {
    "prompt": "TYPE_STRING",
    "negative_prompt": "TYPE_STRING",
    "size": "TYPE_STRING",
    "aspect": "TYPE_STRING",
    "seconds": "TYPE_FP64",
    "frames": "TYPE_INT64",
    "seed": "TYPE_INT64",
    "steps": "TYPE_INT64",
    "guidance": "TYPE_FP64",
    "policy": "TYPE_STRING",
    "image": "TYPE_STRING",  # the bytes of a picture's file
    "image_at": "TYPE_INT64",
    "priority": "TYPE_INT64",
}
# a response has either progress, or everything else and is the last; type and dimensions
OUTPUTS: Mapping[str, tuple[str, int]] = {
    "progress": ("TYPE_STRING", 1),
    "video": ("TYPE_UINT8", -1),
    "media_type": ("TYPE_STRING", 1),
    "seed": ("TYPE_INT64", 1),
    "trace": ("TYPE_STRING", 1),
}
# of config.pbtxt: name -> default; the names are those of adacache-serve's options
PARAMETERS: Mapping[str, str | int] = {
    "backend": ONNXRUNTIME,
    "provider": "cpu",
    "threads": 0,
    "in_flight": 4,
    "memory_budget": 0,
    "max_pixels": Settings.max_pixels,
    "max_steps": Settings.max_steps,
}


def settings_of(given: Mapping[str, str]) -> Settings:
    """Of the worker, by the parameters of a config.pbtxt; ``memory_budget`` is in MB, 0 = what is free.

    Raises:
        InputError: one is unknown, or no whole number where it has to be.
    """
    text: dict[str, str] = {}
    number: dict[str, int] = {}
    for name, value in {**{name: str(default) for name, default in PARAMETERS.items()}, **given}.items():
        if name not in PARAMETERS:
            raise InputError(f"parameter {name!r} in config.pbtxt is unknown; known: {', '.join(PARAMETERS)}")
        if isinstance(PARAMETERS[name], str):
            text[name] = value
            continue
        least = 0 if name in ("threads", "memory_budget") else 1
        if not (value.isascii() and value.isdecimal() and int(value) >= least):
            raise InputError(f"parameter {name} in config.pbtxt is {value!r}; expected a number from {least}")
        number[name] = int(value)
    return Settings(
        Path(),
        engine=Engine(text["backend"], text["provider"], number["threads"]),
        in_flight=number["in_flight"],
        memory_budget=number["memory_budget"] * 10**6 or None,
        max_pixels=number["max_pixels"],
        max_steps=number["max_steps"],
    )
