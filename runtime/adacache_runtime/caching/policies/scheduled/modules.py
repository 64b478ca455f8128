"""Blocks and modules that groups are, for policies that decide by that and measure nothing."""

from collections.abc import Callable, Collection

from adacache_engines.errors import PolicyError
from adacache_runtime.caching.policy import Place, Run

Module = tuple[str, int, str]  # kind and number of a block, and one of PARTS
PARTS = ("attn", "cross", "mlp")


def modules(run: Run, policy: str, kinds: Collection[str] = ()) -> list[Module]:
    """Return the module that each group is.

    Args:
        run: the run.
        policy: name of the policy, for error messages.
        kinds: kinds of blocks that the policy knows; empty = any.

    Raises:
        PolicyError: a group is not one module, or one of another kind of block; says what to do.
    """
    others = {place.kind for place in run.places} - {*kinds, None}
    if kinds and others:
        raise PolicyError(
            f"policy {policy} decides for blocks of the kinds {' and '.join(kinds)}, and this model has others: "
            f"{', '.join(map(str, sorted(map(str, others))))}; choose another policy"
        )
    remedy = "export with --granularity module and run with --granularity module"
    wants = f"policy {policy} decides for single modules, such as spatial.00.attn"
    _check(run, lambda place: place.part in PARTS, wants, remedy)
    return [(place.kind or "", place.index or 0, place.part or "") for place in run.places]


def blocks(run: Run, policy: str) -> list[int]:
    """Return the number of each group's block among those of its kind; groups are blocks or modules.

    Raises:
        PolicyError: a group is more than one block; says what to do.
    """
    remedy = "run with --granularity block, or export and run with --granularity module"
    wants = f"policy {policy} decides for single blocks, such as spatial.00"
    _check(run, lambda place: place.index is not None, wants, remedy)
    return [place.index or 0 for place in run.places]


def _check(run: Run, suits: Callable[[Place], bool], wants: str, remedy: str) -> None:
    if len(run.places) != run.groups or not all(map(suits, run.places)):
        stray = next((place.name for place in run.places if not suits(place)), "without a name")
        raise PolicyError(f"{wants}, and here a group is {stray}: {remedy}")
