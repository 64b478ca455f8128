"""Policies by name: presets, JSON files, objects of one's own modules, and wrappers around them.

A choice is a preset such as ``adacache-fast``, a file ``my.json``, or an object ``mine.rules:POLICY`` of a module; and
any of them with wrappers, ``teacache-slow+max-reuses=3+extrapolate``, the last one outermost.
"""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from adacache_engines.bundle.manifest import Preset
from adacache_engines.errors import InputError
from adacache_runtime.caching.answers import missing_parts, shown
from adacache_runtime.caching.named_object import named_object
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.delta_dit import DeltaDiT
from adacache_runtime.caching.policies.scheduled.guidance_every import GuidanceEvery
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.listed import ListedCalls
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policies.scheduled.pab import PAB
from adacache_runtime.caching.policies.scheduled.tgate import TGate
from adacache_runtime.caching.policies.wrappers import Extrapolate, LastCalls, MaxReuses, WarmUp, Wrapper
from adacache_runtime.caching.policy import Policy

KINDS: Mapping[str, type[BaseModel]] = {
    "adacache": AdaCache,
    "delta-dit": DeltaDiT,
    "easycache": EasyCache,
    "fbcache": FBCache,
    "guidance-every": GuidanceEvery,
    "interval": FixedInterval,
    "listed": ListedCalls,
    "magcache": MagCache,
    "never": NeverReuse,
    "pab": PAB,
    "teacache": TeaCache,
    "tgate": TGate,
    "warm-up": WarmUp,
    "last-calls": LastCalls,
    "max-reuses": MaxReuses,
    "extrapolate": Extrapolate,
}
# wrappers on the command line: the field that a wrapper's number is for; None = it takes no number
WRAPPERS: Mapping[str, str | None] = {
    "warm-up": "calls",
    "last-calls": "calls",
    "max-reuses": "reuses",
    "extrapolate": None,
}

MAX_WRAPPERS = 16  # around one policy; more of them than there are kinds of wrappers have no use
MAX_FILE_NBYTES = 1 << 20  # of a policy's description

# codebooks of the authors' repository, which pads the slow one: its third rate is its last
FAST_30 = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))
SLOW_30 = ((0.08, 3), (0.16, 2), (0.24, 1), (0.32, 1), (0.40, 1), (1.0, 1))
FAST_100 = ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3))

PRESETS: Mapping[str, Policy[Any]] = {
    "never": NeverReuse(),
    "interval-2": FixedInterval(every=2),
    "interval-3": FixedInterval(every=3),
    "interval-4": FixedInterval(every=4),
    "interval-5": FixedInterval(every=5),
    "guidance-every-2": GuidanceEvery(every=2),
    "guidance-every-3": GuidanceEvery(every=3),
    "adacache-fast": AdaCache(codebook=FAST_30),
    "adacache-slow": AdaCache(codebook=SLOW_30),
    "adacache-fast-100": AdaCache(codebook=FAST_100),
    "adacache-fast-moreg": AdaCache(codebook=FAST_30, moreg=MoReg()),
    "adacache-slow-moreg": AdaCache(codebook=SLOW_30, moreg=MoReg()),
    "adacache-fast-100-moreg": AdaCache(codebook=FAST_100, moreg=MoReg(window=(10, 90))),
    "fbcache-slow": FBCache(threshold=0.06),
    "fbcache-fast": FBCache(threshold=0.12),
    "easycache-slow": EasyCache(threshold=0.025),
    "easycache-fast": EasyCache(threshold=0.05),
}

POLICY_HELP = (
    f"a JSON file, MODULE:NAME, or one of {', '.join(PRESETS)}, and the bundle's own; wrappers follow it: "
    + ", ".join(f"+{name}=N" if field else f"+{name}" for name, field in WRAPPERS.items())
    + " (default: never)"
)


def policy_from(choice: str, own: Mapping[str, Preset] | None = None) -> Policy[Any]:
    """Return the policy that a choice names.

    Args:
        choice: name of a preset, path of a ``.json`` file, or ``MODULE:NAME`` of a policy in a module, which may be in
            the current folder; then wrappers, each after a ``+``.
        own: the bundle's presets, which are preferred to the program's of the same name.

    Raises:
        InputError: there is no such preset, file, module or wrapper, or the file has unknown keys or impossible values;
            lists the known ones.
    """
    base, wrappers = _divided(choice)
    if len(wrappers) > MAX_WRAPPERS:
        raise InputError(f"policy {reprlib.repr(choice)} has {len(wrappers)} wrappers; give at most {MAX_WRAPPERS}")
    policy = _base(base, own or {})
    for wrapper in wrappers:
        policy = _wrapped(policy, wrapper, choice)
    return policy


def policy_file(choice: str) -> Path | None:
    """Return the ``.json`` file that a choice of a policy names; None where it names something else."""
    path = Path(_divided(choice)[0])
    return path if path.suffix == ".json" else None


def _divided(choice: str) -> tuple[str, list[str]]:
    """Return the name or the path of a policy, and the wrappers around it."""
    file, json_suffix, rest = choice.rpartition(".json")
    if json_suffix and rest[:1] in ("", "+"):  # the path of a file may have a plus of its own
        return file + json_suffix, rest.split("+")[1:]
    base, *wrappers = choice.split("+")
    return base, wrappers


def _base(choice: str, own: Mapping[str, Preset]) -> Policy[Any]:
    if choice in own:
        return policy_from_description(own[choice].policy, f"preset {choice} of the bundle")
    if choice in PRESETS:
        return PRESETS[choice]
    path = Path(choice)
    if path.suffix != ".json":
        if ":" in choice:
            return _imported(choice)
        known = ", ".join({**own, **PRESETS})
        raise InputError(f"policy {choice!r} is unknown; presets: {known}; or give a .json file, or MODULE:NAME")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_NBYTES + 1)
    except (OSError, ValueError) as error:  # the latter: of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"policy file {path} cannot be read: {reason}") from error
    if len(content) > MAX_FILE_NBYTES:
        raise InputError(f"policy file {path} is larger than {MAX_FILE_NBYTES} bytes; expected a policy's description")
    try:
        described = json.loads(content.decode())
    except ValueError as error:
        raise InputError(f"policy file {path} is not JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"policy file {path} has objects in objects, too deep to read") from error
    return policy_from_description(described, str(path))


def _imported(choice: str) -> Policy[Any]:
    policy: Policy[Any] = named_object(choice, "policy")
    missing = missing_parts(policy)
    if missing or isinstance(policy, type):
        raise InputError(
            f"policy {choice!r} is {shown(policy)}, and no policy: it "
            + (f"has no {', '.join(missing)}" if missing else "is a class; name an object of it")
        )
    return policy


def _wrapped(policy: Policy[Any], wrapper: str, choice: str) -> Policy[Any]:
    name, equals, number = wrapper.partition("=")
    if name not in WRAPPERS or {bool(equals), bool(number)} != {bool(WRAPPERS[name])}:
        known = ", ".join(f"+{each}=N" if field else f"+{each}" for each, field in WRAPPERS.items())
        raise InputError(f"policy {choice!r}: {wrapper!r} is no wrapper; known: {known}")
    described: dict[str, Any] = {"name": name, "policy": policy}
    if field := WRAPPERS[name]:
        described[field] = number
    return _validated(KINDS[name], described, f"policy {choice!r}: {wrapper}")


def policy_from_description(described: object, where: str) -> Policy[Any]:
    """Return the policy that an object such as ``{"name": "interval", "every": 3}`` describes.

    Args:
        described: the object; a wrapper's has another such object as its ``policy``.
        where: name of the file or preset, for error messages.

    Raises:
        InputError: it has no known name, unknown keys or impossible values, or there are too many wrappers.
    """
    return _described(described, where, MAX_WRAPPERS)


def _described(described: object, where: str, wrappers: int) -> Policy[Any]:
    """Return the policy that an object describes, with at most so many wrappers around it."""
    name = described.get("name") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(name, str) or name not in KINDS:
        raise InputError(
            f'{where}: expected an object with "name", one of {", ".join(KINDS)}; got {reprlib.repr(described)}'
        )
    kind = KINDS[name]
    if issubclass(kind, Wrapper) and "policy" in described:
        if not wrappers:
            raise InputError(f"{where}: more than {MAX_WRAPPERS} wrappers around a policy; leave some of them out")
        inner = _described(described["policy"], f"{where}: policy", wrappers - 1)
        described = {**described, "policy": inner}
    return _validated(kind, described, where)


def _validated(kind: type[BaseModel], described: Mapping[str, Any], where: str) -> Policy[Any]:
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
