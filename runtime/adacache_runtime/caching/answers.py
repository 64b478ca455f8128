"""What a policy answers, checked where it is asked: policies may be anybody's code.

An error in a policy, and an answer that is none, become a PolicyError that names the policy and the question.
"""

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from adacache_engines.errors import AdaCacheError, PolicyError
from adacache_runtime.caching.named_object import failure
from adacache_runtime.caching.policy import (
    GRANULARITIES,
    Context,
    Decision,
    Measure,
    Measurement,
    Needs,
    Observation,
    Policy,
    Run,
)

PARTS = ("needs", "start", "decide", "observe")
MAX_RESIDUALS = 64  # of a group; each takes the memory of a state
MAX_STRIDE = 10_000  # frames between which a signal may be measured
SHOWN = 300  # characters of a policy or an answer in a message


def missing_parts(policy: object) -> list[str]:
    """Return the parts of a policy that an object lacks.

    Raises:
        PolicyError: the object fails where it is asked for one.
    """
    with _told(policy, "when it was looked at"):
        return [part for part in PARTS if not hasattr(policy, part)]


def needs_of(policy: Policy[Any]) -> Needs:
    """Return what a policy needs.

    Raises:
        PolicyError: the policy fails, or gives anything else.
    """
    with _told(policy, "to say what it needs"):
        needs: object = policy.needs
    if not isinstance(needs, Needs):
        raise PolicyError(f"policy {shown(policy)} has needs {shown(needs)}; expected an object of Needs")
    flags = (needs.weighted, needs.by_branch, needs.rebuilds)
    if not (
        _whole(needs.residuals, 0, MAX_RESIDUALS)
        and all(isinstance(flag, bool) for flag in flags)
        and needs.granularity in GRANULARITIES
        and _all(needs.measures, _is_measure)
    ):
        raise PolicyError(
            f"policy {shown(policy)} has {shown(needs)}; expected 0 to {MAX_RESIDUALS} residuals, a tuple of "
            f"measures at most {MAX_STRIDE} frames apart, and a granularity of {', '.join(GRANULARITIES)}"
        )
    return needs


def start(policy: Policy[Any], run: Run) -> Any:
    """Return a policy's state before the first call.

    Raises:
        PolicyError: the policy fails, or cannot decide for such groups or calls.
    """
    with _told(policy, "to begin"):
        return policy.start(run)


def decide(policy: Policy[Any], state: Any, context: Context) -> tuple[Decision, Any]:
    """Return a policy's decision on a call and its next state.

    Raises:
        PolicyError: the policy fails, or gives anything but a decision and a state.
    """
    with _told(policy, f"to decide on call {context.call}"):
        answer: object = policy.decide(state, context)
    pair = _pair(answer)
    if pair is None or not isinstance(pair[0], Decision):
        raise PolicyError(
            f"policy {shown(policy)} gave {shown(answer)} for call {context.call}; expected a Decision and the next "
            "state"
        )
    decision, state = pair
    rows = decision.compute if _all(decision.compute, lambda row: isinstance(row, tuple)) else (decision.compute,)
    if not (decision.compute and _all(rows, lambda row: _all(row, lambda group: isinstance(group, bool)))):
        raise PolicyError(
            f"policy {shown(policy)} decided to compute {shown(decision.compute)} on call {context.call}; expected a "
            "tuple of True and False for each group, or a tuple of these for each branch"
        )
    if not (
        _all(decision.weights, _are_weights) and _all(decision.rebuild, lambda each: each is None or _finite(each))
    ):
        raise PolicyError(
            f"policy {shown(policy)} decided on call {context.call} with weights {shown(decision.weights)} and rebuild "
            f"{shown(decision.rebuild)}; expected tuples of finite numbers"
        )
    return decision, state


def observe(
    policy: Policy[Any], state: Any, context: Context, measurements: Sequence[Measurement]
) -> tuple[Observation, Any]:
    """Show a policy what a call measured; return what it makes of that and its next state.

    Raises:
        PolicyError: the policy fails, or gives anything but numbers by name and a state.
    """
    with _told(policy, f"to observe call {context.call}"):
        answer: object = policy.observe(state, context, measurements)
    pair = _pair(answer)
    if pair is None or not _are_numbers(pair[0]):
        raise PolicyError(
            f"policy {shown(policy)} made {shown(answer)} of what call {context.call} measured; expected a mapping of "
            "names to numbers and the next state"
        )
    return pair


def bounds(policy: Policy[Any]) -> tuple[Policy[Any], Policy[Any]] | None:
    """Return the policies that compute the fewest and the most calls that a policy can; None where it states none.

    Raises:
        PolicyError: the policy fails, or gives anything but two policies.
    """
    with _told(policy, "to state its bounds"):
        stated = getattr(policy, "bounds", None)
        answer: object = None if stated is None else stated()
    if answer is None:
        return None
    pair = _pair(answer)
    if pair is None or any(map(missing_parts, pair)):
        raise PolicyError(f"policy {shown(policy)} has bounds {shown(answer)}; expected two policies, or None")
    return pair


def shown(value: object) -> str:
    """Return a policy or an answer as a message shows it: in one line, and not too long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a policy's own, or objects in objects without end
        return f"an object of {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


@contextmanager
def _told(policy: object, what: str) -> Iterator[None]:
    try:
        yield
    except AdaCacheError:
        raise
    except (Exception, SystemExit) as error:
        raise PolicyError(f"policy {shown(policy)} failed {what}: {failure(error)}") from error


def _pair(answer: object) -> tuple[Any, Any] | None:
    return (answer[0], answer[1]) if isinstance(answer, tuple | list) and len(answer) == 2 else None


def _all(values: object, holds: Any) -> bool:
    """Whether something is a tuple, each of whose members is as expected; no other iterable is gone through."""
    return isinstance(values, tuple) and all(map(holds, values))


def _is_measure(measure: object) -> bool:
    return (
        isinstance(measure, Measure)
        and isinstance(measure.site, str)
        and measure.calls in ("computed", "all")
        and measure.since in ("measured", "computed")
        and _all(measure.signals, lambda name: isinstance(name, str))
        and _all(measure.strides, lambda stride: _whole(stride, 1, MAX_STRIDE))
    )


def _are_weights(weights: object) -> bool:
    """Whether something has finite weights for each residual, or a row of such for each group."""
    return _all(weights, lambda each: _finite(each) or _all(each, _finite))


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _are_numbers(observation: object) -> bool:
    """Whether something has numbers by name; NaN is one, of what is not known."""
    return isinstance(observation, Mapping) and all(
        isinstance(name, str) and isinstance(value, int | float) and (_finite(value) or isinstance(value, float))
        for name, value in observation.items()
    )


def _finite(value: object) -> bool:
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
