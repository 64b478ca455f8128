"""Measure one size of the large model on several backends in turn. A phase of a check.

What matters most comes first, and is kept while it is measured: whole calls, then memory, then single stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adacache_engines.bundle.files import open_bundle
from adacache_runtime.settled import settle
from tools.gpu.contenders import open_contenders
from tools.gpu.measure import load, measure_calls, measure_stages
from tools.gpu.requests import sized_request
from tools.gpu.running.results import Report


@dataclass(frozen=True)
class Run:
    """A benchmark of one size.

    Attributes:
        bundle: folder of the model, with plans for the libraries among the backends.
        size: name of a shape profile of one size, such as ``480p:2s``.
        backends: names of backends; see :func:`tools.gpu.contenders.open_backend`.
        steps: number of calls of a generation.
        rounds: number of rounds of each stage on each backend, several calls each.
    """

    bundle: str
    size: str
    backends: Sequence[str]
    steps: int
    rounds: int


def run(arguments: Mapping[str, Any], report: Report) -> None:
    """Measure what the arguments, the fields of a :class:`Run`, say.

    Raises:
        EngineError: no backend could be measured.
    """
    benchmark(Run(**arguments), report)


def benchmark(run: Run, report: Report) -> None:
    """Measure calls, memory and stages, and keep each as it is known; a backend that fails is left out."""
    bundle = open_bundle(run.bundle)
    request = sized_request(bundle, run.size, run.steps)
    settled = settle(bundle, request)
    frames = settled.sizes["patch_frames"]
    sizes = {**settled.sizes, "text": bundle.manifest.text.max_length, "calls": 1, "pairs": max(frames - 1, 1)}
    report.told |= {"size": run.size, "sizes": sizes, "steps": run.steps}
    report.keep()
    contenders = open_contenders(bundle, run.backends, report)
    pipelines = load(contenders, bundle, request, report)
    measure_calls(pipelines, bundle.manifest, request, sizes, report)
    measure_stages({name: contenders[name] for name in pipelines}, bundle, sizes, run.rounds, report)
    for contender in contenders.values():
        contender.close()
