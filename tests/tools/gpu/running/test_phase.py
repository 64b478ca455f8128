"""The time that phases get of a budget, and their overview."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.gpu.running.phase import Phase, cap_within, overview


def phase(cap_s: float, least_s: float = 0.0, name: str = "it") -> Phase:
    return Phase(name, "module", cap_s, least_s, "something")


@pytest.mark.parametrize(
    ("left_s", "cap_s"),
    [
        (math.inf, 60.0),  # no budget
        (100.0, 60.0),
        (75.0, 45.0),  # both later phases keep their least
        (45.0, 15.0),
        (35.0, 15.0),  # the last phase is given up
        (29.0, 9.0 + 20.0),  # so is the one before
        (15.0, 15.0),
        (10.0, 10.0),
        (9.0, None),
        (-1.0, None),
    ],
)
def test_a_cap_shrinks_and_later_phases_keep_their_least(left_s: float, cap_s: float | None) -> None:
    assert cap_within(phase(60.0, 10.0), [phase(90.0, 20.0), phase(90.0, 10.0)], left_s) == cap_s


TIMES = st.integers(0, 100)  # seconds
PHASES = st.lists(st.tuples(TIMES, TIMES).map(lambda pair: phase(max(pair), min(pair))), min_size=1, max_size=6)


@given(PHASES, st.integers(0, 500))
def test_phases_that_hang_stay_within_the_budget_and_the_last_are_given_up_first(
    phases: list[Phase], budget_s: int
) -> None:
    left_s, skipped = float(budget_s), False
    for index, one in enumerate(phases):
        cap_s = cap_within(one, phases[index + 1 :], left_s)
        skipped |= cap_s is None
        if cap_s is not None:
            assert one.least_s <= cap_s <= min(one.cap_s, left_s)
            left_s -= cap_s
    if sum(one.least_s for one in phases) <= budget_s:
        assert not skipped


def test_an_overview_names_caps_and_needs() -> None:
    phases = (phase(60, 5, "first"), Phase("second", "m", 30, 1, "more", after=("first",), backends=("torch-eager",)))
    told = overview(phases)
    assert "| 1 | first  | 60 s | 5 s   | nothing            | something |" in told
    assert "| 2 | second | 30 s | 1 s   | first, torch-eager | more      |" in told
    assert told.endswith("All caps together: 90 s.\n")
