"""Policies by name or description, and which of them a bundle can run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Preset
from adacache_engines.errors import AdaCacheError, InputError
from adacache_runtime.caching.answers import missing_parts, shown
from adacache_runtime.caching.policy import Policy
from adacache_runtime.caching.presets import KINDS, PRESETS, policy_from, policy_from_description
from adacache_runtime.request import Request
from adacache_runtime.settled import settle

PolicyChoice = str | os.PathLike[str] | Mapping[str, Any] | Policy[Any]

policies: Mapping[str, Policy[Any]] = PRESETS
"""The presets that every bundle knows, by name; a bundle may have more of its own."""


@dataclass(frozen=True)
class PolicyInfo:
    """A policy that can be named for a bundle.

    Attributes:
        name: the name.
        note: where its constants come from; empty where there is nothing to say.
        why_not: why the bundle cannot run it, and what to do; None = it can.
    """

    name: str
    note: str
    why_not: str | None


def policy(choice: PolicyChoice, /, **fields: Any) -> Policy[Any]:
    """Return a policy.

    Args:
        choice: name of a preset with any wrappers (``"adacache-fast+max-reuses=3"``), path of a ``.json`` file,
            ``"MODULE:NAME"`` of an object, name of a kind of policy whose ``fields`` follow (``"interval", every=3``),
            the same as a mapping (``{"name": "interval", "every": 3}``), or a policy, which comes back as it is.
        **fields: parameters of a kind of policy.

    Raises:
        InputError: there is no such preset, file, module, kind or wrapper, or a parameter is not possible.
    """
    if fields or (isinstance(choice, str) and choice in KINDS and choice not in PRESETS):
        return policy_from_description({"name": choice, **fields}, f"policy {choice!r}")
    return chosen_policy(choice, {})


def chosen_policy(choice: PolicyChoice, own: Mapping[str, Preset]) -> Policy[Any]:
    """Return the policy that a choice names, the presets of a bundle (``own``) coming before those of all bundles.

    Raises:
        InputError: as of :func:`policy`.
    """
    if isinstance(choice, str | os.PathLike):
        return policy_from(os.fspath(choice), own)
    if isinstance(choice, Mapping):
        return policy_from_description(dict(choice), "policy")
    if missing_parts(choice) or isinstance(choice, type):
        raise InputError(
            f"policy {shown(choice)} is no policy; expected a preset's name, a path, a mapping with a name, or an "
            "object with needs, start, decide and observe"
        )
    return choice


def available_policies(bundle: Bundle) -> list[PolicyInfo]:
    """Return all presets that can be named for a bundle, by name, and why it cannot run some of them."""
    own = bundle.manifest.policies
    names = sorted({*own, *PRESETS})
    return [PolicyInfo(name, own[name].note if name in own else "", _why_not(bundle, name)) for name in names]


def _why_not(bundle: Bundle, name: str) -> str | None:
    try:
        settle(bundle, Request(prompts=("",), policy=policy_from(name, bundle.manifest.policies)))
    except AdaCacheError as error:
        return str(error)
    return None
