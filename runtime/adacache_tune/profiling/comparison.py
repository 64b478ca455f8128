"""Compare two backends: each engine runs on the same inputs, and Polygraphy compares the outputs."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adacache_engines.bundle.manifest import TOLERANCES, Manifest
from adacache_engines.errors import require
from adacache_tune.profiling.subjects import Subject, example, subject_sizes
from adacache_tune.profiling.targets import Target, polygraphy_errors


@dataclass(frozen=True)
class Difference:
    """The difference of one output of one engine on two backends.

    Attributes:
        name: name of the engine.
        output: name of the graph's output.
        max_abs, max_rel: worst differences of an element; NaN where either backend returned one.
        mean_abs: mean difference.
        allowed_abs, allowed_rel: an element may differ by one or the other: by what export allows a stage, relative to
            the rms of its output or to itself.
        passed: whether every element is within that.
    """

    name: str
    output: str
    max_abs: float
    max_rel: float
    mean_abs: float
    allowed_abs: float
    allowed_rel: float
    passed: bool


def compare_engine(
    targets: Mapping[str, Target], manifest: Manifest, subject: Subject, sizes: Mapping[str, int]
) -> list[Difference]:
    """Run an engine on two targets, of which the second is the reference; return the difference of each output.

    Raises:
        EngineError: the engine cannot be loaded or run on one of them.
    """
    sizes = subject_sizes(manifest, subject, sizes)
    tolerance = TOLERANCES[manifest.precision]
    with polygraphy_errors(f"comparing {subject.name}"):
        comparator = require("polygraphy.comparator", "profile")
        runners = []
        for choice, target in targets.items():
            runners.append(target.runner(subject, sizes))
            runners[-1].name = choice
        results = comparator.Comparator.run(runners, data_loader=[example(subject.graph, sizes)])
        reference = results[runners[1].name][0]
        allowed = {name: tolerance * max(1.0, _rms(reference[name])) for name in reference}
        judge = comparator.SimpleCompareFunc(atol=allowed, rtol=tolerance)
        accuracy = comparator.Comparator.compare_accuracy(results, compare_func=judge)
        (outcome,) = accuracy[0].values()
    return [_difference(subject.name, name, one, allowed[name], tolerance) for name, one in outcome[0].items()]


def _rms(values: Any) -> float:
    wide = np.asarray(values, np.float64)
    return float(np.sqrt(np.mean(np.square(wide)))) if np.isfinite(wide).all() else 1.0


def _difference(name: str, output: str, result: Any, allowed_abs: float, allowed_rel: float) -> Difference:
    """Return a difference; ``result`` is False where the outputs have different shapes."""
    if result is False:
        return Difference(name, output, math.nan, math.nan, math.nan, allowed_abs, allowed_rel, passed=False)
    numbers = (result.max_absdiff, result.max_reldiff, result.mean_absdiff)
    return Difference(name, output, *numbers, allowed_abs, allowed_rel, bool(result))


def to_json(command: str, targets: Mapping[str, str], differences: list[Difference]) -> str:
    """Return the differences of all outputs as JSON, in which NaN is null.

    Keys: ``schema_version`` 1, ``command``, ``backends`` (choice -> backend that ran), ``passed``, and ``differences``
    with the fields of :class:`Difference`.
    """
    rows = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in map(asdict, differences)
    ]
    content = {
        "schema_version": 1,
        "command": command,
        "backends": dict(targets),
        "passed": all(difference.passed for difference in differences),
        "differences": rows,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
