"""The order of phases, their budget and their records, with made-up ends of their processes and a made-up clock."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tools.gpu.running.phase import Phase
from tools.gpu.running.processes import Ended
from tools.gpu.running.results import BROKEN_OFF, CAPPED, DONE, FAILED, SKIPPED, Report, read
from tools.gpu.running.runner import CLOSING_S, LIBRARIES, is_well, run_phases

WELL = Ended(0, False, 1.0, "")


@dataclass
class Machine:
    """A clock, and processes that end as they are told.

    Attributes:
        ends: by module, how its process ends; modules that are not named end well.
        told: by module, the results that it keeps.
        takes_s: by module, the time that it wants; 1 s where it is not named.
        now_s: the time.
        asked: modules that were run, each with its cap.
    """

    ends: dict[str, Ended] = field(default_factory=dict)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    takes_s: dict[str, float] = field(default_factory=dict)
    now_s: float = 0.0
    asked: list[tuple[str, float]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    def launch(self, module: str, _arguments: Mapping[str, Any], part: Path, _log: Path, cap_s: float) -> Ended:
        self.asked.append((module, cap_s))
        wanted_s = self.takes_s.get(module, 1.0)
        self.now_s += min(wanted_s, cap_s)
        report = Report(part)
        report.told |= self.told.get(module, {})
        ended = self.ends.get(module, WELL)
        if wanted_s > cap_s:
            ended = Ended(-9, True, cap_s, "stack")
        report.keep(complete=ended.status == 0)
        return ended

    def run(self, phases: tuple[Phase, ...], folder: Path, budget_s: float = 1e9) -> dict[str, Any]:
        run_phases(phases, folder, budget_s, self.clock, self.launch)
        return read(folder)


def phase(name: str, **settings: Any) -> Phase:
    return Phase(name, name, **{"cap_s": 60.0, "least_s": 5.0, "shows": "it", **settings})


ABC = (phase("a"), phase("b"), phase("c"))


def statuses(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: record["status"] for name, record in records.items()}


def test_one_phase_that_fails_takes_nothing_from_the_others(tmp_path: Path) -> None:
    machine = Machine(ends={"b": Ended(-9, False, 2.0, "last words")}, told={name: {"of": name} for name in "abc"})
    records = machine.run(ABC, tmp_path)
    assert statuses(records) == {"a": DONE, "b": FAILED, "c": DONE}
    assert records["b"]["why"] == "its process was ended by SIGKILL"
    assert records["b"]["said"] == "last words"
    assert [records[name]["told"] for name in "abc"] == [{"of": "a"}, {"of": "b"}, {"of": "c"}]
    assert [is_well(record) for record in records.values()] == [True, False, True]
    assert list(tmp_path.glob("*.part.json")) == []


def test_a_hang_takes_its_cap_and_the_last_phases_are_skipped(tmp_path: Path) -> None:
    machine = Machine(takes_s={"a": 1e9, "b": 1e9})
    records = machine.run(ABC, tmp_path, 70 + CLOSING_S)
    assert machine.asked == [("a", 60.0), ("b", 5.0), ("c", 5.0)]
    assert statuses(records) == {"a": CAPPED, "b": CAPPED, "c": DONE}
    assert machine.now_s <= 70
    machine = Machine(takes_s={"a": 1e9})
    records = machine.run(ABC, tmp_path / "shorter", 12 + CLOSING_S)
    assert machine.asked == [("a", 7.0), ("b", 5.0)]
    assert records["c"]["status"] == SKIPPED
    assert records["c"]["why"] == "it takes 5 s at least, and 4 s of the budget are left"
    assert is_well(records["c"])


def test_needs(tmp_path: Path) -> None:
    told = {LIBRARIES: {"usable": [], "unusable": {"tensorrt": "it is not installed"}}}
    machine = Machine(told=told, ends={"b": Ended(1, False, 1.0, "")})
    phases = (
        *(phase(LIBRARIES), phase("b"), phase("after-b", after=("b",)), phase("trt", backends=("tensorrt",))),
        *(phase("torch", backends=("torch-eager",)), phase("last", after=("torch",))),
    )
    records = machine.run(phases, tmp_path)
    assert {name: record["why"] for name, record in records.items() if record["status"] == SKIPPED} == {
        "after-b": "it needs b, which is not done",
        "trt": "it needs tensorrt: it is not installed",
    }
    assert [name for name, _ in machine.asked] == [LIBRARIES, "b", "torch", "last"], "what is not known is tried"


def test_no_time_is_kept_for_phases_whose_backend_is_missing(tmp_path: Path) -> None:
    told = {LIBRARIES: {"unusable": {"tensorrt": "no"}}}
    machine = Machine(told=told, takes_s={"a": 1e9})
    machine.run((phase(LIBRARIES), phase("a"), phase("trt", backends=("tensorrt",))), tmp_path, 31 + CLOSING_S)
    assert machine.asked[-1] == ("a", 30.0)


def test_a_second_run_continues(tmp_path: Path) -> None:
    first = Machine(ends={"a": Ended(1, False, 1.0, "")}, told={"a": {"part": 1}}).run(ABC, tmp_path, 11 + CLOSING_S)
    assert statuses(first) == {"a": FAILED, "b": DONE, "c": DONE}
    machine = Machine(told={"a": {"part": 2}, "d": {}})
    records = machine.run((*ABC, phase("d")), tmp_path)
    assert [name for name, _ in machine.asked] == ["d", "a"], "what was tried in vain comes last"
    assert set(statuses(records).values()) == {DONE}
    assert [one["told"] for one in records["a"]["earlier"]] == [{"part": 1}]
    again = Machine()
    again.run((*ABC, phase("d")), tmp_path)
    assert again.asked == []


def test_a_backend_that_is_installed_between_two_runs_takes_part(tmp_path: Path) -> None:
    phases = (phase(LIBRARIES), phase("a"), phase("b", backends=("gpu",)))
    before = Machine(told={LIBRARIES: {"unusable": {"gpu": "it is not installed"}}})
    assert before.run(phases, tmp_path)["b"]["why"] == "it needs gpu: it is not installed"
    after = Machine(told={LIBRARIES: {"unusable": {}}})
    assert after.run(phases, tmp_path)["b"]["status"] == DONE
    assert [name for name, _ in after.asked] == [LIBRARIES, "b"]


def test_what_others_need_is_tried_again_first(tmp_path: Path) -> None:
    phases = (phase("a"), phase("b", after=("a",)))
    Machine(ends={"a": Ended(1, False, 1.0, "")}).run(phases, tmp_path)
    machine = Machine()
    assert statuses(machine.run(phases, tmp_path)) == {"a": DONE, "b": DONE}


def test_a_phase_with_other_arguments_or_whose_files_are_gone_is_run_again(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.touch()
    one = phase("a", leaves=str(left))
    folder = tmp_path / "records"

    def runs(asked: Phase) -> bool:
        machine = Machine()
        machine.run((asked,), folder)
        return bool(machine.asked)

    assert runs(one)
    assert not runs(one)
    assert runs(replace(one, arguments={"steps": 3}))
    assert not runs(replace(one, arguments={"steps": 3}))
    left.unlink()
    assert runs(replace(one, arguments={"steps": 3}))


def test_what_a_phase_found_is_not_lost_where_there_is_no_time_to_try_it_again(tmp_path: Path) -> None:
    Machine(ends={"a": Ended(-11, False, 1.0, "")}, told={"a": {"part": 1}}).run(ABC[:1], tmp_path)
    told: list[dict[str, Any]] = []
    run_phases(ABC[:1], tmp_path, 0.0, lambda: 0.0, Machine().launch, told.append)
    assert told[0]["status"] == SKIPPED
    assert read(tmp_path)["a"]["status"] == FAILED
    assert read(tmp_path)["a"]["told"] == {"part": 1}


def test_a_check_that_is_ended_during_a_phase_leaves_what_the_phase_kept(tmp_path: Path) -> None:
    machine = Machine()

    def launch(module: str, arguments: Mapping[str, Any], part: Path, log: Path, cap_s: float) -> Ended:
        if module == "b":
            report = Report(part)
            report.told["half"] = 1
            report.keep()
            raise KeyboardInterrupt
        return machine.launch(module, arguments, part, log, cap_s)

    try:
        run_phases(ABC, tmp_path, 100.0, machine.clock, launch)
    except KeyboardInterrupt:
        records = read(tmp_path)
    assert statuses(records) == {"a": DONE, "b": BROKEN_OFF}
    assert records["b"]["told"] == {"half": 1}
    assert not is_well(records["b"])
    assert machine.run(ABC, tmp_path)["b"]["earlier"][0]["told"] == {"half": 1}


def test_a_process_that_ends_badly_after_its_results_is_done_and_said(tmp_path: Path) -> None:
    def launch(_module: str, _arguments: Mapping[str, Any], part: Path, _log: Path, _cap_s: float) -> Ended:
        Report(part).keep(complete=True)
        return Ended(-11, False, 1.0, "")

    run_phases(ABC[:1], tmp_path, 100.0, lambda: 0.0, launch)
    record = read(tmp_path)["a"]
    assert record["status"] == DONE
    assert record["note"] == "after its results, its process was ended by SIGSEGV"
    assert not is_well(record)


def test_parts_that_fail_are_kept_with_their_reason(tmp_path: Path, capsys: Any) -> None:
    report = Report(tmp_path / "a.part.json")
    report.failed("second", ZeroDivisionError("none"))
    report.skipped("third", "it is not installed")
    report.keep(complete=True)
    found = json.loads((tmp_path / "a.part.json").read_text())
    assert found["failures"] == [{"what": "second", "why": "ZeroDivisionError: none"}]
    assert found["skips"] == [{"what": "third", "why": "it is not installed"}]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not is_well({"status": DONE, **found})
