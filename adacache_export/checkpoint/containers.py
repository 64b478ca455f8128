"""The containers and key prefixes that training scripts put around a state dict, and what is inside of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adacache_engines.errors import CheckpointError
from adacache_engines.printable import first_of, printable

EMA = ("ema", "ema_model", "model_ema", "ema_state_dict", "shadow")
WRAPPERS = (*EMA, "state_dict", "model_state_dict", "model", "module", "_orig_mod", "net", "generator", "weights")
MAX_DEPTH = 5  # containers inside containers; a pickle may even hold itself
TOP = "top"  # name of the set of weights with nothing around it


def unwrap(tree: Mapping[Any, Any], weights: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the model's tensors out of what a file holds, and notes on what was taken and what was left.

    A set of weights is named by the containers and prefixes around it, such as ``ema`` or ``state_dict.model``; a set
    with nothing around it is ``top``. Of several complete sets the moving average (EMA) is taken, as inference should.

    Args:
        tree: content of the file.
        weights: name of another set to take, or a part of that name.

    Raises:
        CheckpointError: there are no tensors, or ``weights`` does not name exactly one set.
    """
    sets: dict[str, dict[str, Tensor]] = {}
    ignored: list[str] = []
    _collect(tree, (), sets, ignored)
    if not sets:
        keys = ", ".join(printable(key, 60) for key in list(tree)[:12]) or "none"
        raise CheckpointError(
            f"no tensors found; expected a state dict, plain or in one of {', '.join(WRAPPERS)} (keys here: {keys})"
        )
    taken = _named(sets, weights) if weights is not None else _best(sets)
    notes = []
    others = [f"{label} ({len(tensors)} tensors)" for label, tensors in sets.items() if label != taken]
    if others or weights is not None or taken != TOP:
        rest = f"; left: {', '.join(others)}" if others else ""
        notes.append(f"took the weights under {taken} ({len(sets[taken])} tensors){rest}")
    if ignored:
        notes.append(f"ignored beside the weights: {first_of(ignored, ', ')}")
    return sets[taken], tuple(notes)


def _collect(
    tree: Mapping[Any, Any], path: tuple[str, ...], sets: dict[str, dict[str, Tensor]], ignored: list[str]
) -> None:
    for key, value in tree.items():
        if isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value):
            prefixes, name = _split(key)
            tensors = sets.setdefault(".".join((*path, *prefixes)) or TOP, {})
            if name in tensors:
                raise CheckpointError(f"{name} is there twice under {'.'.join((*path, *prefixes))}; expected it once")
            tensors[name] = value.detach()
        elif key in WRAPPERS and isinstance(value, Mapping) and len(path) < MAX_DEPTH:
            _collect(value, (*path, str(key)), sets, ignored)
        else:
            ignored.append(".".join((*path, str(key))))


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _split(key: str) -> tuple[tuple[str, ...], str]:
    """Split ``module.ema.blocks.0.weight`` into its prefixes ``(module, ema)`` and ``blocks.0.weight``."""
    prefixes: list[str] = []
    while True:
        first, _, rest = key.partition(".")
        if first not in WRAPPERS or not rest or len(prefixes) == MAX_DEPTH:
            return tuple(prefixes), key
        prefixes.append(first)
        key = rest


def _best(sets: Mapping[str, Mapping[str, Tensor]]) -> str:
    # an average with few of the model's names holds a wrapper's counters, or has rewritten the names
    largest = max(sets, key=lambda label: len(sets[label]))
    averages = [label for label in sets if set(label.split(".")) & set(EMA)]
    return next(
        (label for label in averages if 2 * len(sets[label].keys() & sets[largest]) > len(sets[largest])), largest
    )


def _named(sets: Mapping[str, Mapping[str, Tensor]], weights: str) -> str:
    exact = [label for label in sets if label == weights]
    found = exact or [label for label in sets if weights in label.split(".")]
    if len(found) != 1:
        there = ", ".join(f"{label} ({len(tensors)} tensors)" for label, tensors in sets.items())
        problem = "is not there" if not found else "names several"
        raise CheckpointError(f"the set of weights {weights!r} {problem}; choose one of: {there}")
    return found[0]
