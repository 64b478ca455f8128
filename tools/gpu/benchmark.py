"""Measure one size of the benchmark in a process of its own: ``python -m tools.gpu.benchmark RUN_AS_JSON FILE``.

The file is written after each part, so that the numbers outlive a library that ends its process.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adacache_engines.bundle.files import open_bundle
from adacache_runtime.settled import settle
from tools.gpu.contenders import Skips, open_contenders
from tools.gpu.measure import load, measure_calls, measure_stages
from tools.gpu.requests import sized_request


@dataclass(frozen=True)
class Run:
    """A benchmark of one size.

    Attributes:
        bundle: folder of the model, with plans.
        size: name of a shape profile of one size, such as ``480p:2s``.
        backends: names of backends; see :mod:`tools.gpu.machine`.
        targets: compute capability whose plans are used on purpose, by library.
        steps: number of steps of a generation.
        rounds: number of rounds of each stage on each backend, several calls each.
    """

    bundle: str
    size: str
    backends: tuple[str, ...]
    targets: Mapping[str, str]
    steps: int
    rounds: int


def benchmark(run: Run, file: Path) -> None:
    bundle = open_bundle(run.bundle)
    request = sized_request(bundle, run.size, run.steps)
    settled = settle(bundle, request)
    frames = settled.sizes["patch_frames"]
    sizes = {**settled.sizes, "text": bundle.manifest.text.max_length, "calls": 1, "pairs": max(frames - 1, 1)}
    skipped: Skips = []
    told: dict[str, Any] = {"sizes": sizes, "steps": run.steps, "skipped": skipped}

    def keep() -> None:
        file.write_text(json.dumps(told))

    contenders = open_contenders(bundle, run.backends, run.targets, skipped)
    keep()
    told["stages"] = measure_stages(contenders, bundle, sizes, run.rounds, skipped)
    keep()
    pipelines, told["memory_mb"] = load(contenders, bundle, request, skipped)
    keep()
    told["calls"] = measure_calls(pipelines, bundle.manifest, request, sizes, skipped)
    keep()
    for contender in contenders.values():
        contender.close()


def main(run: str, file: str) -> None:
    benchmark(Run(**json.loads(run)), Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
