"""Choices of a policy as users write them: wrappers after a plus, nested descriptions, an object of a module."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings

from adacache_engines.bundle.manifest import Preset
from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.wrappers import Extrapolate, LastCalls, MaxReuses, WarmUp
from adacache_runtime.caching.presets import PRESETS, policy_from, policy_from_description
from tests.helpers.policies.policy_kinds import KINDS, WRAPS, Wrap, wrapped


def test_wrappers_are_read_from_the_inside_out() -> None:
    inner = WarmUp(policy=PRESETS["adacache-fast"], calls=3)
    assert policy_from("adacache-fast+warm-up=3+extrapolate") == Extrapolate(policy=inner)
    other = WarmUp(policy=Extrapolate(policy=PRESETS["adacache-fast"]), calls=3)
    assert policy_from("adacache-fast+extrapolate+warm-up=3") == other
    limited = LastCalls(policy=MaxReuses(policy=PRESETS["interval-3"], reuses=1), calls=2)
    assert policy_from("interval-3+max-reuses=1+last-calls=2") == limited


def test_wrappers_go_around_what_is_in_a_file_or_a_bundle(tmp_path: Path) -> None:
    """Also where there is a plus in the name of a folder."""
    folder = tmp_path / "c++"
    folder.mkdir()
    path = folder / "mine.json"
    described = {"name": "max-reuses", "reuses": 2, "policy": {"name": "interval", "every": 4}}
    path.write_text(json.dumps(described))
    limited = MaxReuses(policy=FixedInterval(every=4), reuses=2)
    assert policy_from(str(path)) == limited
    assert policy_from(f"{path}+warm-up=2") == WarmUp(policy=limited, calls=2)
    assert policy_from("mine+extrapolate", {"mine": Preset(policy=described)}) == Extrapolate(policy=limited)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "delta-dit"])
@given(wraps=WRAPS)
@settings(max_examples=10)
def test_a_wrapped_policy_can_be_written_down(kind: str, wraps: list[Wrap]) -> None:
    policy = wrapped(KINDS[kind][0], [*wraps, ("extrapolate", 0)])
    for described in (policy.model_dump(), json.loads(policy.model_dump_json())):
        assert policy_from_description(described, "here") == policy


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("never+faster", ["'faster' is no wrapper", "+warm-up=N", "+last-calls=N", "+max-reuses=N", "+extrapolate"]),
        ("never+faster=3", ["'faster=3' is no wrapper"]),
        ("never+", ["'' is no wrapper"]),
        ("never+warm-up", ["'warm-up' is no wrapper", "+warm-up=N"]),
        ("never+warm-up=", ["'warm-up=' is no wrapper", "+warm-up=N"]),
        ("never+extrapolate=2", ["'extrapolate=2' is no wrapper", "+extrapolate"]),
        ("never+extrapolate=", ["'extrapolate=' is no wrapper"]),
        ("never+warm-up=0", ["warm-up=0: calls: "]),
        ("never+warm-up=few", ["warm-up=few: calls: "]),
        ("never+max-reuses=-1", ["max-reuses=-1: reuses: "]),
        ("never+max-reuses=1.5", ["max-reuses=1.5: reuses: "]),
        ("nothing+warm-up=3", ["policy 'nothing' is unknown", "presets: never"]),
        ("warm-up=3", ["policy 'warm-up=3' is unknown"]),
        ("nothing.json+warm-up=3", ["policy file nothing.json cannot be read"]),
    ],
)
def test_a_choice_that_cannot_be(choice: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        policy_from(choice)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# a module of one's own

RULES = """
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse


class Half(NeverReuse):
    pass


class Nothing:
    def start(self, run):
        return None


POLICY = FixedInterval(every=7)
EMPTY = Nothing()
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the current folder, which nobody has put on the path."""
    name = "rules_of_my_own"
    (tmp_path / f"{name}.py").write_text(RULES)
    (tmp_path / "broken_rules.py").write_text("import nothing_of_that_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield name
    for each in (name, "broken_rules"):
        sys.modules.pop(each, None)


def test_a_policy_of_a_module(module: str) -> None:
    assert policy_from(f"{module}:POLICY") == FixedInterval(every=7)
    assert policy_from(f"{module}:POLICY+warm-up=2") == WarmUp(policy=FixedInterval(every=7), calls=2)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("rules_of_my_own:ABSENT", ["cannot be imported", "ABSENT", "expected MODULE:NAME"]),
        ("rules_of_my_own:", ["cannot be imported", "expected MODULE:NAME"]),
        ("no_such_rules:POLICY", ["cannot be imported", "no_such_rules", "current folder or installed"]),
        ("broken_rules:POLICY", ["cannot be imported", "nothing_of_that_name"]),
        (":POLICY", ["cannot be imported", "expected MODULE:NAME"]),
        (".rules:POLICY", ["cannot be imported", "expected MODULE:NAME"]),
        ("rules_of_my_own:Half", ["and no policy", "is a class; name an object of it"]),
        ("rules_of_my_own:Nothing", ["no policy"]),
        ("rules_of_my_own:EMPTY", ["no policy", "has no needs, decide, observe"]),
        ("rules_of_my_own:NUMBER", ["is 3, and no policy", "has no needs, start, decide, observe"]),
    ],
)
@pytest.mark.usefixtures("module")
def test_a_module_without_such_a_policy(choice: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        policy_from(choice)
    assert all(word in str(caught.value) for word in [choice, *words]), str(caught.value)
