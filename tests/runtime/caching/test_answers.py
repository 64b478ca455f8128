"""Answers of policies: those that are none are told, and good ones pass as they are."""

from typing import Any

import pytest

from adacache_engines.errors import PolicyError
from adacache_runtime.caching import answers
from adacache_runtime.caching.policy import Context, Decision, Needs, Run

CONTEXT = Context(Run(3, 2, 1), 2, 500.0)
NEEDS = Needs()
GOOD = (Decision((True, False), ((1.0,), (0.5,))), "state")


class Answers:
    """A policy that gives the same answer to every question."""

    def __init__(self, answer: Any, needs: Any = NEEDS) -> None:
        self.answer, self.needs = answer, needs

    def start(self, run: Run) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def decide(self, *_: Any) -> Any:
        return self.start(CONTEXT.run)

    observe = decide


def test_good_answers_pass() -> None:
    assert answers.decide(Answers(GOOD), None, CONTEXT) == GOOD
    assert answers.observe(Answers(({"distance": float("nan"), "rate": 3}, 0)), None, CONTEXT, [])[1] == 0
    assert answers.needs_of(Answers(None)) == NEEDS
    assert answers.start(Answers(None), CONTEXT.run) is None


@pytest.mark.parametrize("answer", [None, GOOD[0], (GOOD[0],), (Decision((1, 0)), 0), (Decision([True]), 0)])
def test_what_is_no_decision(answer: Any) -> None:
    with pytest.raises(PolicyError, match=r"on call 2|for call 2"):
        answers.decide(Answers(answer), None, CONTEXT)


@pytest.mark.parametrize("answer", [None, ({"metric": "high"}, 0), ({"metric": 1.0},), ({1: 1.0}, 0)])
def test_what_is_no_observation(answer: Any) -> None:
    with pytest.raises(PolicyError, match="what call 2 measured; expected a mapping of names to numbers"):
        answers.observe(Answers(answer), None, CONTEXT, [])


def test_an_error_names_the_policy_and_the_question() -> None:
    with pytest.raises(PolicyError, match=r"policy <.*Answers.*> failed to decide on call 2: ValueError: odd"):
        answers.decide(Answers(ValueError("odd")), None, CONTEXT)
    with pytest.raises(PolicyError, match="failed to begin: it ends the program with the status 0"):
        answers.start(Answers(SystemExit(0)), CONTEXT.run)
    with pytest.raises(PolicyError, match=r"^refused$"):  # its own refusals stay as they are
        answers.start(Answers(PolicyError("refused")), CONTEXT.run)
    with pytest.raises(PolicyError, match="has needs None"):
        answers.needs_of(Answers(None, needs=None))
