"""Policies by the names that a command line gives them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adacache_engines.bundle.manifest import Preset
from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import Policy
from adacache_runtime.caching.presets import policy_from
from adacache_tune.comparison.measure import FULL


def named_policies(choices: Sequence[str], own: Mapping[str, Preset]) -> dict[str, Policy[Any]]:
    """Return policies by label: the name as it was given, or that of a JSON file without folder and suffix.

    Full compute, which is always compared, is left out.

    Raises:
        InputError: a policy is not known or is damaged, two have one label, or none but full compute is named.
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
