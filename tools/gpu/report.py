"""Write the results of a check as Markdown, from whatever records there are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tools.gpu.phases import MACHINE
from tools.gpu.running.phase import table
from tools.gpu.running.results import Record

Told = Mapping[str, Any]
NOTHING = "–"


def markdown(records: Mapping[str, Record], command: str = "") -> str:
    """Return the whole report: machine, phases, and a section for each phase that has results or reasons to tell.

    Args:
        records: records by phase, in the order in which the phases began.
        command: command that ran the check.
    """
    machine = records.get(MACHINE.name, {}).get("told", {})
    others = {name: record for name, record in records.items() if name != MACHINE.name}
    parts = [_head(machine, command), _phases(others)]
    parts += [_section(name, record) for name, record in others.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _head(machine: Told, command: str) -> str:
    rows = [("command", f"`{command}`")] if command else []
    gpu = machine.get("gpu")
    if gpu:
        rows += [
            ("GPU", f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_mb'] / 1e3:.0f} GB, "
                    f"{gpu['multiprocessors']} multiprocessors"),
            ("CUDA", f"driver {gpu['driver']}, runtime {gpu['runtime']}"),
        ]  # fmt: skip
    if "system" in machine:
        rows += [
            ("date", machine["date"]),
            ("machine", f"{machine['system']}, {machine['cores']} cores, Python {machine['python']}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items())),
        ]
    return "# GPU check\n\n" + table(("", ""), rows)


def _phases(records: Mapping[str, Record]) -> str:
    rows = [
        (
            name,
            record["status"],
            number(record.get("seconds"), 1),
            number(record.get("cap_s"), 0),
            f"{len(record.get('failures', []))}",
            _line(record.get("why") or record.get("note") or ""),
        )
        for name, record in records.items()
    ]
    return "## Phases\n\n" + table(("phase", "status", "seconds", "cap", "failures", "why"), rows) if rows else ""


def _section(name: str, record: Record) -> str:
    """Return what a phase has found; nothing where that is nothing."""
    told = record.get("told", {})
    parts = [_written(key, told) for key in SECTIONS if told.get(key)]
    parts += [_list(f"{heading}:", record[key]) for key, heading in LISTS.items() if record.get(key)]
    if record.get("said"):
        parts.append("Its last words:\n\n```\n" + "\n".join(record["said"].splitlines()[-LINES:]) + "\n```")
    if record.get("earlier"):
        parts.append(f"Times it was tried before: {len(record['earlier'])}. The record has those results too.")
    shows = record["shows"]
    return "\n\n".join((f"## {name}", f"{shows[:1].upper()}{shows[1:]}.", *filter(None, parts))) if parts else ""


def _written(key: str, told: Told) -> str:
    """Return a section's text; a report that cannot be written must not end the check."""
    try:
        return SECTIONS[key](told)
    except (KeyError, TypeError, ValueError, ArithmeticError, StopIteration) as error:
        return f"The results under {key} cannot be shown: {type(error).__name__}: {error}"


LINES = 12  # of a process's last words
LISTS = {"failures": "Failed", "skips": "Skipped"}


def _list(heading: str, entries: Sequence[Mapping[str, str]]) -> str:
    return "\n".join((heading, "", *(f"- {one['what']}: {_line(one['why'])}" for one in entries)))


def _scenarios(told: Told) -> str:
    rows = [(name, one["outcome"], number(one.get("seconds"))) for name, one in told["scenarios"].items()]
    return table(("scenario", "outcome", "seconds"), rows)


def _usable(told: Told) -> str:
    lines = [f"Usable: {', '.join(told['usable']) or 'none'}.", ""]
    return "\n".join((*lines, *(f"- {name}: {_line(why)}" for name, why in told["unusable"].items())))


def _agreement(key: str) -> Callable[[Told], str]:
    def write(told: Told) -> str:
        rows = [
            (name, f"{one['error']:.1e}", f"{one['allowed']:.1e}", "yes" if one["agrees"] else "NO")
            for name, one in told[key].items()
        ]
        return table((key, "error", "allowed", "agrees"), rows)

    return write


def _tests(told: Told) -> str:
    tests = told["tests"]
    reasons = dict.fromkeys(tests["skipped"].values())
    lines = [f"{tests['passed']} passed, {len(tests['failed'])} failed, {len(tests['skipped'])} skipped.", ""]
    return "\n".join((*lines, *(f"- skipped: {_line(reason)}" for reason in reasons))).strip()


def _model(told: Told) -> str:
    model = told["model"]
    config, pairs = model["config"], model["distinct_pairs"]
    lines = [
        f"STDiT3 with random weights, {model['precision']}: {config['depth']} + {config['depth']} blocks of width "
        f"{config['hidden_size']}. {pairs} pairs of blocks have weights of their own and serve for all: a call does "
        f"the whole model's work, but weights take the memory of {pairs} pairs.",
    ]
    lines += [
        f"\n{name}: {plans['plans']} plans, {plans['mb']:.0f} MB, built in {plans['build_s']:.1f} s for compute "
        f"capability {', '.join(plans['targets'])}."
        for name, plans in model["plans"].items()
    ]
    return "\n".join(lines)


def _calls(told: Told) -> str:
    backends = told["calls"]["backends"]
    if not backends:
        return ""
    base = next(iter(backends))
    rows = [
        (
            name,
            _spread(one["full_ms"]),
            _median(one["full_host_ms"]),
            number(one["tflop_per_s"], 0),
            _ratio(one["full_ms"], backends[base]["full_ms"]),
            _spread(one["cached_ms"]),
            _median(one["cached_wall_ms"]),
            _median(one["cached_host_ms"]),
            f"{one['computed']} of {one['calls']}",
            number(one.get("speed_up")),
            number(one.get("efficiency"), 3),
        )
        for name, one in backends.items()
    ]
    columns = (
        "", "full call, ms", "host adds", "TFLOP/s", f"× {base}", "cached call, ms", "wall", "host adds", "computed",
        "speed-up", "efficiency",
    )  # fmt: skip
    note = (
        f"{told['size']}. A full call is {told['calls']['tflop']:.1f} TFLOP (both branches of guidance). "
        "Milliseconds are the GPU's, median (smallest to largest); backends take turns call by call. The host adds "
        "what a call takes by the clock beside that. Speed-up: a generation without reuse / with AdaCache, whole; "
        "efficiency: speed-up / (calls / computed calls)."
    )
    return note + "\n\n" + table(columns, rows)


def _stages(told: Told) -> str:
    stages = told["stages"]
    names = list(dict.fromkeys(name for stage in stages.values() for name in stage["backends"]))
    columns = ["stage", "GFLOP", *(f"{name}, ms" for name in names), *(f"{name}, TFLOP/s" for name in names)]
    rows = []
    for stage, one in stages.items():
        found = [one["backends"].get(name) for name in names]
        times = [NOTHING if cell is None else number(cell["ms"]["median"], 3) for cell in found]
        rates = [NOTHING if cell is None else number(cell["tflop_per_s"], 0) for cell in found]
        rows.append([stage, number(one["gflop"], 1) if one["gflop"] else NOTHING, *times, *rates])
    return "Stages, median of runs in turn:\n\n" + table(columns, rows)


def _memory(told: Told) -> str:
    memory = told["memory_mb"]
    kinds = list(next(iter(memory.values())))
    rows = [[name, *(number(one[kind], 0) for kind in kinds)] for name, one in memory.items()]
    return "Device memory in MB; what is not measured is computed from the shapes:\n\n" + table(["", *kinds], rows)


def _spread(spread: Mapping[str, float] | None) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})" if spread else NOTHING


def _median(spread: Mapping[str, float] | None) -> str:
    return number(spread["median"] if spread else None)


def _ratio(spread: Mapping[str, float] | None, base: Mapping[str, float] | None) -> str:
    return number(spread["median"] / base["median"] if spread and base and base["median"] else None)


def _line(text: str) -> str:
    """Return the text on one line, for a list or a table."""
    return " ".join(_words(text))


def _words(text: str) -> Iterator[str]:
    for word in text.split():
        yield word.replace("|", "\\|")


# a phase's results by their key, and how each is written
SECTIONS: Mapping[str, Callable[[Told], str]] = {
    "scenarios": _scenarios,
    "unusable": _usable,
    "graphs": _agreement("graphs"),
    "generations": _agreement("generations"),
    "tests": _tests,
    "model": _model,
    "calls": _calls,
    "stages": _stages,
    "memory_mb": _memory,
}
