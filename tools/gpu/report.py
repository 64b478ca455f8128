"""Write the results as Markdown, with every number beside those that were measured in the same run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
NOTHING = "–"


def markdown(result: Result) -> str:
    """Return the whole report, which names the parts that were not run."""
    parts = [_head(result), _attempts(result), _tests(result), _model(result)]
    parts += [_benchmark(size, told) for size, told in result.get("benchmark", {}).items()]
    parts.append(_skipped(result))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    lines.insert(1, "|" + "---|" * len(columns))
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _head(result: Result) -> str:
    machine = result["machine"]
    gpu = machine["gpu"]
    rows = [
        ("date", result["date"]),
        ("command", f"`{result['command']}`"),
        ("GPU", f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_mb'] / 1e3:.0f} GB, "
                f"{gpu['multiprocessors']} multiprocessors"),
        ("CUDA", f"driver {gpu['driver']}, runtime {gpu['runtime']}"),
        ("machine", f"{machine['system']}, {machine['cores']} cores, Python {machine['python']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items())),
    ]  # fmt: skip
    return "# GPU check\n\n" + table(("", ""), rows)


def _attempts(result: Result) -> str:
    told = result.get("attempts")
    if not told:
        return ""
    capability = result["machine"]["gpu"]["capability"]
    lines = [f"TensorRT-RTX does not name compute capability {capability}. Tried on purpose:", ""]
    for one in told:
        how = f"plans built for {'this GPU' if one['how'] == 'current' else one['how']}"
        if one.get("runs"):
            difference = one.get("difference")
            compared = "not compared" if difference is None else f"largest difference from the CPU {difference:.1e}"
            lines.append(f"- {how}: ran, {compared}")
        else:
            lines.append(f"- {how}: did not run: {_line(one.get('why') or one.get('failed') or 'NaN in the latents')}")
    return "## An unnamed GPU\n\n" + "\n".join(lines)


def _tests(result: Result) -> str:
    told = result.get("tests")
    if told is None:
        return ""
    if "failed" in told:
        return f"## Tests\n\nNot finished: {_line(told['failed'])}"
    skips = sum(told["skips"].values())
    lines = [
        f"{told['passed']} passed, {len(told['failures'])} failed, {skips} skipped, in {told['seconds']:.0f} s.",
        *(f"- FAILED {one['test']}: {_line(one['why'])}" for one in told["failures"]),
        *(f"- {count} skipped: {_line(reason)}" for reason, count in told["skips"].items()),
    ]
    return "## Tests\n\n" + "\n".join(lines)


def _model(result: Result) -> str:
    told = result.get("model")
    if told is None:
        return ""
    if "config" not in told:
        return f"## Model\n\nNot made: {_line(told['failed'])}"
    config, pairs = told["config"], told["distinct_pairs"]
    lines = [
        f"STDiT3 with random weights, {told['precision']}: {config['depth']} + {config['depth']} blocks of width "
        f"{config['hidden_size']}. {pairs} pairs of blocks have weights of their own and serve for all: a call does "
        f"the whole model's work, but weights take the memory of {pairs} pairs.",
    ]
    for name, plans in told["plans"].items():
        if "failed" in plans:
            lines.append(f"\n{name}: no plans: {_line(plans['failed'])}")
        else:
            lines.append(
                f"\n{name}: {plans['plans']} plans, {plans['mb']:.0f} MB, built in {plans['build_s']:.1f} s for "
                f"compute capability {', '.join(plans['targets'])}."
            )
    return "## Model\n\n" + "\n".join(lines)


def _benchmark(size: str, told: Result) -> str:
    parts = [f"## {size}"]
    if "failed" in told:
        parts.append(f"Not finished: {_line(told['failed'])}")
    if told.get("calls", {}).get("backends"):
        parts.append(_calls(told))
    if told.get("stages"):
        parts.append(_stages(told["stages"]))
    if told.get("memory_mb"):
        parts.append(_memory(told["memory_mb"]))
    parts += [f"- {one['what']} skipped: {_line(one['why'])}" for one in told.get("skipped", [])]
    return "\n\n".join(parts)


def _calls(told: Result) -> str:
    backends = told["calls"]["backends"]
    base = next(iter(backends))
    rows = [
        (
            name,
            _spread(one["full_ms"]),
            number(one["full_wall_ms"]["median"]),
            number(one["tflop_per_s"], 0),
            number(one["full_ms"]["median"] / backends[base]["full_ms"]["median"]),
            _spread(one["cached_ms"]),
            number(one["cached_wall_ms"]["median"]),
            f"{one['computed']} of {one['calls']}",
            number(one["speed_up"]),
            number(one["efficiency"], 3),
        )
        for name, one in backends.items()
    ]
    columns = ("", "full call, ms", "wall", "TFLOP/s", f"× {base}", "cached call, ms", "wall", "computed", "speed-up",
               "efficiency")  # fmt: skip
    note = (
        f"A full call is {told['calls']['tflop']:.1f} TFLOP (both branches of guidance). Milliseconds are the GPU's, "
        "median (smallest to largest); all backends take turns call by call. Speed-up: a generation without reuse / "
        "with AdaCache, whole; efficiency: speed-up / (calls / computed calls)."
    )
    return note + "\n\n" + table(columns, rows)


def _stages(stages: Result) -> str:
    names = list(dict.fromkeys(name for stage in stages.values() for name in stage["backends"]))
    columns = ["stage", "GFLOP", *(f"{name}, ms" for name in names), *(f"{name}, TFLOP/s" for name in names)]
    rows = []
    for stage, one in stages.items():
        found = [one["backends"].get(name) for name in names]
        times = [NOTHING if cell is None else number(cell["ms"]["median"], 3) for cell in found]
        rates = [NOTHING if cell is None else number(cell["tflop_per_s"], 0) for cell in found]
        rows.append([stage, number(one["gflop"], 1) if one["gflop"] else NOTHING, *times, *rates])
    return "Stages, median of runs in turn:\n\n" + table(columns, rows)


def _memory(memory: Result) -> str:
    kinds = list(next(iter(memory.values())))
    rows = [[name, *(number(one[kind], 0) for kind in kinds)] for name, one in memory.items()]
    return "Device memory in MB; what is not measured is computed from the shapes:\n\n" + table(["", *kinds], rows)


def _skipped(result: Result) -> str:
    lines = [f"- {one['what']}: {_line(one['why'])}" for one in result.get("skipped", [])]
    return "## Skipped\n\n" + "\n".join(lines) if lines else ""


def _spread(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


def _line(text: str) -> str:
    """Return the text on one line, for a list or a table."""
    return " ".join(_words(text))


def _words(text: str) -> Iterator[str]:
    for word in text.split():
        yield word.replace("|", "\\|")
