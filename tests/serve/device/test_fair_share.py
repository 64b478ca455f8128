"""Stride scheduling: shares follow weights, no member starves, and new members need not wait."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adacache_serve.device.fair_share import DOUBLES_AFTER, Turns

PRIORITIES = st.integers(-10, 10)
SECONDS = st.floats(1e-4, 10)


def weight(priority: int) -> float:
    return 2 ** (priority / DOUBLES_AFTER)


def run(turns: Turns[int], costs: dict[int, float], until: float) -> dict[int, float]:
    """Return the seconds that each member had when all together had ``until``."""
    had = dict.fromkeys(costs, 0.0)
    while sum(had.values()) < until:
        who = turns.next()
        turns.spent(who, costs[who])
        had[who] += costs[who]
    return had


@given(st.lists(PRIORITIES, min_size=1, max_size=6), st.lists(SECONDS, min_size=50, max_size=200))
@settings(max_examples=40)
def test_shares_are_proportional_to_weights_up_to_one_turn(priorities: list[int], costs: list[float]) -> None:
    """Turns may have any length: by time over weight, no member is more than a turn ahead of another."""
    turns: Turns[int] = Turns()
    for who, priority in enumerate(priorities):
        turns.add(who, priority)
    had = dict.fromkeys(range(len(priorities)), 0.0)
    turn = dict.fromkeys(had, 0.0)  # the longest that each had
    for seconds in costs:
        who = turns.next()
        turns.spent(who, seconds)
        had[who] += seconds
        turn[who] = max(turn[who], seconds)
        least = min(had[one] / weight(priorities[one]) for one in had)
        assert all((had[one] - turn[one]) / weight(priorities[one]) <= least * (1 + 1e-9) for one in had)


def test_every_two_steps_of_priority_double_the_share() -> None:
    turns: Turns[int] = Turns()
    for priority in (0, 2, 4):
        turns.add(priority, priority)
    had = run(turns, dict.fromkeys((0, 2, 4), 0.01), 70)
    assert [round(had[priority]) for priority in (0, 2, 4)] == [10, 20, 40]


def test_one_with_long_turns_gets_no_more_time_than_one_with_short_ones() -> None:
    turns: Turns[str] = Turns()
    turns.add("long", 0)
    turns.add("short", 0)
    had: Counter[str] = Counter()
    order = []
    for _ in range(220):
        who = turns.next()
        order.append(who)
        turns.spent(who, {"long": 100, "short": 1}[who])
        had[who] += {"long": 100, "short": 1}[who]
    assert abs(had["long"] - had["short"]) <= 100
    assert max(len(list(group)) for who, group in itertools.groupby(order) if who == "long") == 1


@given(st.lists(st.tuples(PRIORITIES, SECONDS), min_size=1, max_size=6), st.integers(0, 300), PRIORITIES, st.booleans())
@settings(max_examples=40)
def test_a_newcomer_has_its_turn_before_anybody_has_a_second(
    those: list[tuple[int, float]], before: int, priority: int, during: bool
) -> None:
    """It may come between two turns or during one, however long the others have been there."""
    turns: Turns[int] = Turns()
    for who, (theirs, _) in enumerate(those):
        turns.add(who, theirs)
    for _ in range(before):
        who = turns.next()
        turns.spent(who, those[who][1])
    running = turns.next() if during else None
    turns.add(-1, priority)
    if running is not None:
        turns.spent(running, those[running][1])
    seen: set[int] = set()
    while (who := turns.next()) != -1:
        assert who not in seen
        seen.add(who)
        turns.spent(who, those[who][1])


@given(PRIORITIES, PRIORITIES, SECONDS, SECONDS)
@settings(max_examples=40)
def test_nobody_starves_under_a_stream_of_newcomers_that_take_one_turn_each(
    own: int, theirs: int, cost: float, passing: float
) -> None:
    """The first turn of each new member comes at once; beside that, the long one has its share."""
    turns: Turns[int] = Turns()
    turns.add(-1, own)
    had, count = 0.0, 300
    for number in range(count):
        turns.add(number, theirs)
        while (who := turns.next()) == -1:
            turns.spent(-1, cost)
            had += cost
        turns.spent(who, passing)
        turns.remove(who)
    share = weight(own) / weight(theirs) * passing
    assert had >= (count - 2) * min(cost, share) / 2


def test_after_a_pause_nobody_owes_or_is_owed() -> None:
    turns: Turns[str] = Turns()
    turns.add("first", 0)
    for _ in range(1000):
        turns.spent(turns.next(), 1)
    turns.remove("first")
    turns.add("second", 0)
    turns.add("third", 0)
    order = []
    for _ in range(6):
        who = turns.next()
        order.append(who)
        turns.spent(who, 1)
    assert order == ["second", "third"] * 3


def test_who_left_during_its_turn_is_gone() -> None:
    turns: Turns[str] = Turns()
    turns.add("one", 0)
    who = turns.next()
    turns.remove(who)
    turns.spent(who, 1)
    assert len(turns) == 0
    with pytest.raises(KeyError):
        turns.remove(who)
