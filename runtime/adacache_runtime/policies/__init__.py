"""The policies by name: presets, and what a JSON file describes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from adacache_engines.errors import InputError
from adacache_engines.manifest import Preset
from adacache_runtime.policies.adacache import AdaCache, MoReg
from adacache_runtime.policies.delta_dit import DeltaDiT
from adacache_runtime.policies.interval import FixedInterval
from adacache_runtime.policies.never import NeverReuse
from adacache_runtime.policies.pab import PAB
from adacache_runtime.policies.tgate import TGate
from adacache_runtime.policy import Policy

KINDS: Mapping[str, type[BaseModel]] = {
    "adacache": AdaCache,
    "delta-dit": DeltaDiT,
    "interval": FixedInterval,
    "never": NeverReuse,
    "pab": PAB,
    "tgate": TGate,
}

# of the authors' repository; the slow one is padded there, its third rate being the last
FAST_30 = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))
SLOW_30 = ((0.08, 3), (0.16, 2), (0.24, 1), (0.32, 1), (0.40, 1), (1.0, 1))
FAST_100 = ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3))

PRESETS: Mapping[str, Policy[Any]] = {
    "never": NeverReuse(),
    "interval-2": FixedInterval(every=2),
    "interval-3": FixedInterval(every=3),
    "adacache-fast": AdaCache(codebook=FAST_30),
    "adacache-slow": AdaCache(codebook=SLOW_30),
    "adacache-fast-100": AdaCache(codebook=FAST_100),
    "adacache-fast-moreg": AdaCache(codebook=FAST_30, moreg=MoReg()),
    "adacache-slow-moreg": AdaCache(codebook=SLOW_30, moreg=MoReg()),
    "adacache-fast-100-moreg": AdaCache(codebook=FAST_100, moreg=MoReg(window=(10, 90))),
}


def policy_from(choice: str, own: Mapping[str, Preset] | None = None) -> Policy[Any]:
    """The policy that a preset's name or a JSON file describes.

    Args:
        choice: name of a preset, or path of a ``.json`` file.
        own: presets of the bundle; they come before those of the same name.

    Raises:
        InputError: no such preset or file, or the file has unknown keys or impossible values; lists the known ones.
    """
    own = own or {}
    if choice in own:
        return policy_from_description(own[choice].policy, f"preset {choice} of the bundle")
    if choice in PRESETS:
        return PRESETS[choice]
    path = Path(choice)
    if path.suffix != ".json":
        known = ", ".join({**own, **PRESETS})
        raise InputError(f"policy {choice!r} is unknown; presets: {known}; or give a .json file")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"policy file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"policy file {path} is not JSON: {error}") from error
    return policy_from_description(described, str(path))


def policy_from_description(described: object, where: str) -> Policy[Any]:
    """The policy that an object such as ``{"name": "interval", "every": 3}`` describes.

    Raises:
        InputError: it has no known name, unknown keys or impossible values; says in which file (``where``).
    """
    name = described.get("name") if isinstance(described, dict) else None
    if not isinstance(name, str) or name not in KINDS:
        raise InputError(f'{where}: expected an object with "name", one of {", ".join(KINDS)}; got {described!r}')
    kind = KINDS[name]
    try:
        policy: Any = kind.model_validate(described)
    except ValidationError as error:
        problems = "; ".join(
            _explain(kind, problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()
        )
        raise InputError(f"{where}: {problems}") from error
    result: Policy[Any] = policy
    return result


def _explain(kind: type[BaseModel], place: tuple[int | str, ...], problem: str, message: str) -> str:
    if problem != "extra_forbidden":
        return f"{'.'.join(map(str, place))}: {message}"
    owner = MoReg if len(place) > 1 else kind  # the only nested object
    return f"{'.'.join(map(str, place))} is unknown; known keys: {', '.join(owner.model_fields)}"
