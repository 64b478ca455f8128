"""What the command line names: prompts, seeds, policies; and what a comparison is, for its file's first line."""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Preset
from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import Policy
from adacache_runtime.caching.presets import policy_from
from adacache_tune.comparison.measure import FULL
from adacache_tune.profiling.machine import machine


def read_prompts(path: Path) -> list[str]:
    """One a line; empty lines and those that begin with # are no prompts, and repeated ones count once.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"prompts {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"prompts {path} cannot be read: it is no text in UTF-8") from error
    stripped = [line.strip() for line in lines]
    prompts = list(dict.fromkeys(line for line in stripped if line and not line.startswith("#")))
    if not prompts:
        raise InputError(f"prompts {path} holds none; write one prompt a line")
    return prompts


def seed_range(text: str) -> list[int]:
    """``3`` or ``0-3``, for ``argparse``."""
    first, separator, last = text.partition("-")
    if not first.isdecimal() or (separator and not last.isdecimal()) or (separator and int(last) < int(first)):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed, such as 3, and no range of seeds, such as 0-3")
    return list(range(int(first), int(last if separator else first) + 1))


def named_policies(choices: Sequence[str], own: Mapping[str, Preset]) -> dict[str, Policy[Any]]:
    """Label -> policy: its name as it was given, that of a JSON file without folder and suffix. Full compute, which is
    always compared, is left out.

    Raises:
        InputError: a policy is not known or is damaged, two have one label, or none is left.
    """
    found: dict[str, Policy[Any]] = {}
    for choice in choices:
        if choice == FULL:
            continue
        file, suffix, wrappers = choice.rpartition(".json")
        label = Path(file).name + wrappers if suffix else choice
        if label in found or label == FULL:
            raise InputError(f"two policies would be called {label}; copy {choice} to a file of another name")
        found[label] = policy_from(choice, own)
    if not found:
        raise InputError(f"{FULL} alone has nothing to be compared with; name other policies")
    return found


def description(policy: Policy[Any]) -> Any:
    """As JSON."""
    return policy.model_dump(mode="json") if isinstance(policy, BaseModel) else repr(policy)


def header(
    bundle: Bundle, backend: str, policies: Mapping[str, Policy[Any]], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the numbers of a prompt and seed follow from.

    Args:
        bundle: that runs. Its presets and plans do not count: policies are described, and plans compute the same.
        backend: what runs it.
        policies: label -> policy.
        asked: of each generation, and what is measured besides, as JSON.
    """
    content = bundle.manifest.model_dump_json(exclude={"policies", "plans"})
    here = machine(on_gpu=False)
    return {
        "version": metadata.version("adacache-export"),
        "bundle": hashlib.sha256(content.encode()).hexdigest(),
        "backend": backend,
        "processor": f"{here['processor']}, {here['cores']} cores",
        "policies": {label: description(policy) for label, policy in policies.items()},
        **asked,
    }
