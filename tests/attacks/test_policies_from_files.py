"""Policies from files and modules: broken, endless, ending the program, deciding nonsense.

Code in a module is run on purpose, so it is not kept from anything; but what it does wrong by mistake is told in one
line, and leaves nothing behind.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from adacache_engines.errors import InputError, PolicyError
from adacache_runtime.caching.policy import Place, Run
from adacache_runtime.caching.presets import MAX_WRAPPERS, policy_from
from adacache_runtime.caching.simulate import Unchanged, bounds, simulate
from adacache_runtime.policy_names import policy
from tests.helpers.model.fake_command import FakeRun

Input = TypeVar("Input")
Tries = Callable[[Iterable[Input]], Iterator[Input]]
Capture = pytest.CaptureFixture[str]

RULES = """
import itertools, math, sys
from dataclasses import dataclass, field
from typing import Any
import numpy as np
from adacache_runtime.caching.policy import Decision, Measure, Needs

class Rule:
    needs = Needs(measures=(Measure("latents", "all"),))
    def start(self, run): return 0
    def decide(self, state, context): return Decision((True,) * context.run.groups), state
    def observe(self, state, context, measurements): return {}, state

def rule(**parts):
    return type("Odd", (Rule,), parts)()

def decides(answer): return rule(decide=lambda self, state, context: answer)
def computes(compute): return decides((Decision(compute), 0))
def observes(answer): return rule(observe=lambda self, state, context, measurements: answer)
def fails(error):
    def fail(self, *_): raise error
    return fail

class Endless:
    def __iter__(self): return itertools.repeat(True)

class Unshowable(Rule):
    def __repr__(self): raise ValueError("no")
    def decide(self, state, context): return None

class Long(Rule):
    def __repr__(self): return "long\\n" * 100_000
    def decide(self, state, context): return None
"""

# each an expression, and words of the line that tells what is wrong with it
ODD = {
    "decides(None)": "gave None for call 1; expected a Decision",
    "decides(3)": "gave 3 for call 1; expected a Decision",
    "decides((True, 0))": "gave (True, 0) for call 1; expected a Decision",
    "decides((Decision((True,)),))": "expected a Decision",
    "decides((Decision((True,)), 0, 0))": "expected a Decision",
    "decides(itertools.count())": "expected a Decision",
    "decides(Endless())": "expected a Decision",
    "computes(())": "decided to compute ()",
    "computes(None)": "decided to compute None",
    "computes([True])": "decided to compute [True]",
    "computes((1,))": "decided to compute (1,)",
    "computes((np.True_,))": "decided to compute",
    "computes((None,))": "decided to compute (None,)",
    "computes('C')": "decided to compute 'C'",
    "computes((math.nan,))": "decided to compute (nan,)",
    "computes(itertools.repeat(True))": "decided to compute repeat(True)",
    "computes(Endless())": "decided to compute",
    "computes(((True,), True))": "decided to compute ((True,), True)",
    "computes(((),))": "decides for each branch",
    "computes((True,) * 7)": "decided for 7 groups at call 1, not 1",
    "computes((True,) * 100_000)": "decided for 100000 groups at call 1, not 1",
    "computes((False,))": "reuses group 0 at call 1, for which no residual was kept",
    "decides((Decision((True,), weights=math.nan), 0))": "with weights nan",
    "decides((Decision((True,), weights=((math.nan,),)), 0))": "with weights ((nan,),)",
    "decides((Decision((True,), weights=((math.inf,),)), 0))": "with weights ((inf,),)",
    "decides((Decision((True,), weights=((10**400,),)), 0))": "with weights",
    "decides((Decision((True,), weights=(('a',),)), 0))": "with weights (('a',),)",
    "decides((Decision((True,), weights=((1.0,),)), 0))": "weighs residuals at call 1",
    "decides((Decision((True,), rebuild=(math.nan,)), 0))": "and rebuild (nan,)",
    "decides((Decision((True,), rebuild='ab'), 0))": "and rebuild 'ab'",
    "decides((Decision((True,), rebuild=(1.0, None)), 0))": "rebuilds branches at call 1",
    "rule(decide=fails(ValueError('a\\nb')))": "failed to decide on call 1: ValueError: a b",
    "rule(decide=fails(KeyError('x')))": "failed to decide on call 1: KeyError",
    "rule(decide=fails(SystemExit(0)))": "it ends the program with the status 0",
    "rule(decide=fails(StopIteration()))": "failed to decide on call 1: StopIteration",
    "rule(decide=fails(RecursionError('deep')))": "failed to decide on call 1: RecursionError: deep",
    "rule(decide=fails(MemoryError()))": "failed to decide on call 1: MemoryError",
    "rule(decide=lambda self: None)": "failed to decide on call 1: TypeError",
    "rule(decide=None)": "failed to decide on call 1: TypeError",
    "rule(start=fails(SystemExit(0)))": "failed to begin: it ends the program with the status 0",
    "rule(start=fails(OSError(28, 'full')))": "failed to begin: OSError",
    "rule(start=3)": "failed to begin: TypeError",
    "rule(needs=None)": "has needs None; expected an object of Needs",
    "rule(needs=Needs)": "expected an object of Needs",
    "rule(needs=property(fails(ZeroDivisionError('z'))))": "failed when it was looked at: ZeroDivisionError: z",
    "rule(needs=property(fails(SystemExit(0))))": "failed when it was looked at: it ends the program",
    "rule(needs=Needs(residuals=-1))": "expected 0 to 64 residuals",
    "rule(needs=Needs(residuals=1.5))": "expected 0 to 64 residuals",
    "rule(needs=Needs(residuals=math.nan))": "expected 0 to 64 residuals",
    "rule(needs=Needs(residuals=10**30))": "expected 0 to 64 residuals",
    "rule(needs=Needs(granularity='layers'))": "a granularity of",
    "rule(needs=Needs(granularity=[]))": "a granularity of",
    "rule(needs=Needs(measures=itertools.repeat(Measure())))": "a tuple of measures",
    "rule(needs=Needs(measures=(None,)))": "a tuple of measures",
    "rule(needs=Needs(measures=(Measure(7),)))": "a tuple of measures",
    "rule(needs=Needs(measures=(Measure('nowhere'),)))": "nowhere",
    "rule(needs=Needs(measures=(Measure('latents', 'all', signals=('nothing',)),)))": "nothing",
    "rule(needs=Needs(measures=(Measure('latents', 'sometimes'),)))": "a tuple of measures",
    "rule(needs=Needs(measures=(Measure(strides=(0,)),)))": "a tuple of measures",
    "rule(needs=Needs(measures=(Measure(strides=(10**30,)),)))": "a tuple of measures",
    "rule(needs=Needs(weighted='yes'))": "expected 0 to 64 residuals",
    "observes(None)": "made None of what call 2 measured",
    "observes(({'metric': 'high'}, 0))": "made ({'metric': 'high'}, 0) of what call 2 measured",
    "observes(({3: 1.0}, 0))": "made ({3: 1.0}, 0) of what call 2 measured",
    "observes(({'metric': np.float32(1)}, 0))": "of what call 2 measured",
    "observes(({'metric': 10**400}, 0))": "of what call 2 measured",
    "observes(([1.0], 0))": "made ([1.0], 0) of what call 2 measured",
    "observes(itertools.repeat({}))": "made repeat({}) of what call 2 measured",
    "rule(observe=fails(SystemExit(0)))": "failed to observe call 2: it ends the program with the status 0",
    "Unshowable()": "policy an object of Unshowable gave None",
    "Long()": "gave None for call 1",
    "Rule": "is a class; name an object of it",
    "3": "has no needs, start, decide, observe",
    "Endless()": "has no needs, start, decide, observe",
}

MODULES = {
    "raises": ("raise ValueError('on\\npurpose')", "ValueError: on purpose"),
    "ends": ("import sys; sys.exit(0)", "it ends the program with the status 0"),
    "ends by quit": ("quit()", "it ends the program with the status None"),
    "no syntax": ("def (:", "SyntaxError: invalid syntax"),
    "no text": (b"x = '\xff'", "SyntaxError"),
    "zeros": (b"\0\0\0", "SyntaxError"),
    "brackets": ("(" * 100_000, "Error"),
    "deep": ("def f(): f()\nf()", "RecursionError"),
    "missing": ("import nothing_of_that_name", "nothing_of_that_name"),
    "itself": ("from broken import POLICY", "cannot be imported"),
    "empty": ("", "has no attribute 'POLICY'"),
    "getattr": ("def __getattr__(name): raise OSError(name)", "OSError"),
    "not found": ("raise FileNotFoundError(2, 'No such file', 'x')", "FileNotFoundError"),
}

FILES = {
    "brackets": "[" * 100_000,
    "closed brackets": "[" * 900 + "]" * 900,
    "objects": '{"name": "warm-up", "calls": 1, "policy": ' * 100_000,
    "900 wrappers": '{"name": "warm-up", "calls": 1, "policy": ' * 900 + '{"name": "never"}' + "}" * 900,
    "17 wrappers": '{"name": "warm-up", "calls": 1, "policy": ' * 17 + '{"name": "never"}' + "}" * 17,
    "large": '{"name": "never", "x": "' + "a" * 2_000_000 + '"}',
    "a long word": '{"name": "' + "a" * 900_000 + '"}',
    "a long key": '{"name": "never", "' + "a" * 900_000 + '": 1}',
    "control characters": '{"name": "never", "\\u001b[2J\\r\\n": 1}',
    "surrogates": '{"name": "never", "\\ud800": 1}',
    "empty": "",
    "null": "null",
    "list": "[]",
    "text": '"never"',
    "number": "1e999",
    "no name": "{}",
    "name of another type": '{"name": ["never"]}',
    "name of nothing": '{"name": null}',
    "NaN": '{"name": "fbcache", "threshold": NaN}',
    "infinity": '{"name": "fbcache", "threshold": 1e999}',
    "negative": '{"name": "fbcache", "threshold": -1}',
    "NaN of a codebook": '{"name": "adacache", "codebook": [[NaN, 1]]}',
    "infinity of a codebook": '{"name": "adacache", "codebook": [[1e999, 1]]}',
    "negative rate": '{"name": "adacache", "codebook": [[1.0, -3]]}',
    "huge rate": '{"name": "adacache", "codebook": [[1.0, 1e400]]}',
    "empty codebook": '{"name": "adacache", "codebook": []}',
    "NaN coefficients": '{"name": "teacache", "coefficients": [NaN], "threshold": 1}',
    "no coefficients": '{"name": "teacache", "coefficients": [], "threshold": 1}',
    "every 0": '{"name": "interval", "every": 0}',
    "every -1": '{"name": "interval", "every": -1}',
    "every NaN": '{"name": "interval", "every": NaN}',
    "many digits": '{"name": "interval", "every": ' + "9" * 5000 + "}",
    "listed nothing": '{"name": "listed", "computed": []}',
    "listed negative": '{"name": "listed", "computed": [-1]}',
    "listed beyond": '{"name": "listed", "computed": [1, 10000000000000000000000]}',
    "a wrapper of nothing": '{"name": "warm-up", "calls": 1}',
    "a wrapper of a number": '{"name": "warm-up", "calls": 1, "policy": 3}',
    "a wrapper of itself": '{"name": "warm-up", "calls": 1, "policy": "mine.json"}',
    "a wrapper with NaN": '{"name": "warm-up", "calls": NaN, "policy": {"name": "never"}}',
    "two objects": '{"name": "never"}{"name": "never"}',
    "comments": '{"name": "never"} // that one',
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return FakeRun(tmp_path, monkeypatch)


def refused(run: FakeRun, capsys: Capture, choice: str) -> str:
    """Run a policy, which must fail with one line that names what is wrong, and leave nothing; return the line."""
    before = run.files()
    capsys.readouterr()
    assert run("--policy", choice, "--trace", "out/t.json") == 1, choice
    shown, error = capsys.readouterr()
    assert run.files() == before, choice
    assert "Traceback" not in error, choice
    assert not shown
    line = error.splitlines()[-1]
    assert line.startswith("adacache-run: "), error
    assert len(line) < 5000
    assert line.isprintable()
    return line


def test_nonsense_of_a_policy(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    names = {f"P{number}": odd for number, odd in enumerate(ODD)}
    lines = [f"{name} = {odd}" for name, odd in names.items()]
    (tmp_path / "odd_rules.py").write_text("\n".join([RULES, *lines, ""]))
    try:
        for name in tries(names):
            assert ODD[names[name]] in refused(run, capsys, f"odd_rules:{name}"), names[name]
    finally:
        sys.modules.pop("odd_rules", None)


def test_nonsense_of_a_policy_in_a_wrapper(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    """The wrapper meets it first, and it is told all the same."""
    kept = [odd for odd in ODD if not odd.startswith(("computes((False", "decides((Decision((True,), rebuild"))]
    kept.remove("decides((Decision((True,), weights=((1.0,),)), 0))")  # extrapolate has weights of its own
    names = {f"P{number}": odd for number, odd in enumerate(kept)}
    lines = [f"{name} = {odd}" for name, odd in names.items()]
    (tmp_path / "inner_rules.py").write_text("\n".join([RULES, *lines, ""]))
    try:
        for name in tries(names):
            assert "policy" in refused(run, capsys, f"inner_rules:{name}+max-reuses=1+extrapolate"), names[name]
    finally:
        sys.modules.pop("inner_rules", None)


def test_modules_that_break(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    """One that ends the program with the status 0 used to end the command with 0, and nothing written."""
    for name in tries(MODULES):
        content, told = MODULES[name]
        (tmp_path / "broken.py").write_bytes(content if isinstance(content, bytes) else content.encode())
        line = refused(run, capsys, "broken:POLICY")
        assert "policy 'broken:POLICY' cannot be imported" in line
        assert told in line
        assert "broken" not in sys.modules or sys.modules.pop("broken")


def test_names_of_modules(run: FakeRun, tries: Tries[str], capsys: Capture) -> None:
    names = ["", ".", "..", "a..b", "/etc/passwd", "a\0b", "\ud800", "x" * 100_000, "os.path.join", "\x1b[2J", "a b"]
    for name in tries(names):
        refused(run, capsys, f"{name}:POLICY")
        refused(run, capsys, f"os:{name}")


def test_files_that_describe_no_policy(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    for name in tries(FILES):
        (tmp_path / "mine.json").write_text(FILES[name])
        told = refused(run, capsys, "mine.json")
        assert "policy listed" in told if name == "listed beyond" else "mine.json" in told, name


def test_what_is_no_file(run: FakeRun, tries: Tries[str], capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    for name in tries(["bytes", "folder", "loop", "endless", "nowhere", "x" * 300, "\udcff", "\0", "x/" * 3000 + "x"]):
        assert "policy file" in refused(run, capsys, f"{name}.json"), name


def test_wrappers_without_end(run: FakeRun, tries: Tries[int], capsys: Capture) -> None:
    for count in tries((MAX_WRAPPERS + 1, 900, 30_000)):
        for wrapper in ("+warm-up=1", "+max-reuses=1", "+extrapolate", "+"):
            assert "wrappers" in refused(run, capsys, f"never{wrapper * count}")
    assert run("--policy", "never" + "+max-reuses=1" * MAX_WRAPPERS, "--trace", "out/t.json") == 0


def test_numbers_of_wrappers(run: FakeRun, tries: Tries[str], capsys: Capture) -> None:
    for number in tries(["nan", "inf", "-1", "0", "1e308", "9" * 5000, "", " ", "0x10", "١٢٣", "1_0", "\udcff"]):
        for wrapper in ("warm-up", "last-calls"):
            if number not in ("1_0", "١٢٣", "1e308"):
                refused(run, capsys, f"never+{wrapper}={number}")
    huge = str(2**100)
    assert (
        run("--policy", f"interval-2+warm-up={huge}+max-reuses={huge}+last-calls={huge}", "--trace", "out/t.json") == 0
    )


def test_policies_that_are_driven_without_a_model(tries: Tries[str]) -> None:
    """Policies that answer nonsense are refused where a calibration or an inspection simulates them."""
    names: dict[str, Any] = {}
    exec(RULES, names)
    whole = Run(3, 1, 1, (Place("all"),), (900.0, 500.0, 100.0))
    for odd in tries(ODD):
        made = eval(odd, names)
        try:
            for bound in bounds(made) or (made,):
                simulate(bound, whole, Unchanged())
        except (PolicyError, InputError) as error:
            assert len(str(error)) < 2000
        except AttributeError:
            assert not hasattr(made, "needs")


def test_policies_of_a_program(tries: Tries[object]) -> None:
    class Broken:
        @property
        def needs(self) -> object:
            raise RuntimeError("needs")

    for choice in tries([None, 3, b"never", [], object(), Broken(), Broken]):
        with pytest.raises((InputError, PolicyError)):
            policy(choice)  # type: ignore[arg-type]
    deep: dict[str, object] = {"name": "never"}
    for _ in range(5000):
        deep = {"name": "warm-up", "calls": 1, "policy": deep}
    with pytest.raises(InputError, match="more than 16 wrappers"):
        policy(deep)
    own: dict[str, object] = {"name": "warm-up", "calls": 1}
    own["policy"] = own
    with pytest.raises(InputError, match="more than 16 wrappers"):
        policy(own)
    assert policy_from("never+warm-up=1")
    assert json.dumps(FILES["17 wrappers"])
