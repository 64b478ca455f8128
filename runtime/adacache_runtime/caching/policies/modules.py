"""What the groups are, for policies that go by that and measure nothing."""

import re

from adacache_engines.errors import PolicyError
from adacache_runtime.caching.policy import Run

Module = tuple[str, int, str]  # spatial or temporal, number of the block, and attn, cross or mlp
MODULE = re.compile(r"(spatial|temporal)\.(\d+)\.(attn|cross|mlp)")
BLOCK = re.compile(r"((?:spatial|temporal)\.(\d+))(?:\.\w+(?: to \1\.\w+)?)?")


def modules(run: Run, policy: str) -> list[Module]:
    """The groups, named such as ``spatial.07.attn``.

    Raises:
        PolicyError: a group is not one module; says what to do.
    """
    remedy = "export with --granularity module and run with --granularity module"
    matches = _matches(MODULE, run, f"policy {policy} decides for single modules, such as spatial.00.attn", remedy)
    return [(match[1], int(match[2]), match[3]) for match in matches]


def blocks(run: Run, policy: str) -> list[int]:
    """The number of each group's block; groups are blocks, such as ``spatial.07``, or modules.

    Raises:
        PolicyError: a group is more than one block; says what to do.
    """
    remedy = "run with --granularity block, or export and run with --granularity module"
    matches = _matches(BLOCK, run, f"policy {policy} decides for single blocks, such as spatial.00", remedy)
    return [int(match[2]) for match in matches]


def _matches(pattern: re.Pattern[str], run: Run, wants: str, remedy: str) -> list[re.Match[str]]:
    matches = [match for name in run.names if (match := pattern.fullmatch(name))]
    if len(matches) != run.groups:
        stray = next((name for name in run.names if not pattern.fullmatch(name)), "without a name")
        raise PolicyError(f"{wants}, and here a group is {stray}: {remedy}")
    return matches
