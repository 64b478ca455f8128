"""Compare a backend on a GPU with ONNX Runtime on the processor: each graph, and whole generations. A phase of a check.

Tolerances are wider than those of an export, which compares stages on one processor: a GPU sums in another order.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.engine import Backend
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policy import Policy
from adacache_runtime.events import Denoised
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.settled import settle
from tools.gpu.contenders import open_backend, succeeds
from tools.gpu.measure import bound, examples
from tools.gpu.phases import ONNXRUNTIME
from tools.gpu.requests import small_request
from tools.gpu.running.results import Report
from tools.speed.calls import EVERY_THIRD

POLICIES: Mapping[str, Policy[Any]] = {"never": NeverReuse(), "adacache": EVERY_THIRD}
STEPS = 8
STAGE_BOUNDS = {"fp32": 2e-4, "fp16": 2e-2, "bf16": 1.5e-1}  # see :func:`error`
# of latents after STEPS calls, see :func:`error`: the roundings of all stages and calls, with guidance's gain
TRAJECTORY_BOUNDS = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 4e-1}

Arrays = dict[str, NDArray[Any]]


def run(arguments: Mapping[str, Any], report: Report) -> None:
    """Compare ``backend`` with the processor on the bundle in the folder ``bundle``, with the bounds of ``precision``.

    The backends that are not ONNX Runtime run the graphs of the denoising loop only.
    """
    bundle = open_bundle(Path(arguments["bundle"]))
    name = arguments["backend"]
    tested, reference = open_backend(bundle, name), OnnxRuntime().open(bundle)
    graphs = bundle.manifest.graphs() if name == ONNXRUNTIME else bundle.manifest.loop_graphs()
    compare_graphs(bundle, tested, reference, graphs, STAGE_BOUNDS[arguments["precision"]], report)
    compare_generations(bundle, tested, reference, TRAJECTORY_BOUNDS[arguments["precision"]], report)
    tested.close()
    reference.close()


def compare_graphs(
    bundle: Bundle, tested: Backend, reference: Backend, graphs: Sequence[Graph], allowed: float, report: Report
) -> None:
    """Compare each graph on random inputs; the report gets ``graphs``, by name: the error, and what it may be."""
    found = report.told["graphs"] = {}
    for graph in graphs:

        def compare(graph: Graph = graph) -> None:
            sizes = graph_sizes(bundle, graph)
            wanted = stage_outputs(reference, graph, sizes)
            found[graph.name] = _judged(error(stage_outputs(tested, graph, sizes), wanted), allowed)

        _kept(report, graph.name, compare, found)


def compare_generations(bundle: Bundle, tested: Backend, reference: Backend, allowed: float, report: Report) -> None:
    """Compare generations; the report gets ``generations``, by policy: the latents' error, and what it may be."""
    found = report.told["generations"] = {}
    for name in POLICIES:

        def compare(name: str = name) -> None:
            given, wanted = generations(bundle, tested, reference, name)
            if given.trace.computed() != wanted.trace.computed():
                report.failed(name, f"computed {given.trace.computed()}, the processor {wanted.trace.computed()}")
            difference = error({"latents": given.latents}, {"latents": wanted.latents})
            found[name] = _judged(difference, allowed)

        _kept(report, name, compare, found)


def _kept(report: Report, name: str, compare: Callable[[], None], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Make one comparison and keep it; that it fails is no reason not to make the others."""
    if succeeds(report, name, compare) and not found[name]["agrees"]:
        report.failed(name, f"an error of {found[name]['error']:.1e}, where {found[name]['allowed']:.1e} are allowed")
    report.keep()


def _judged(value: float, allowed: float) -> dict[str, Any]:
    return {"error": value, "allowed": allowed, "agrees": bool(value <= allowed)}  # NaN does not


def generations(bundle: Bundle, tested: Backend, reference: Backend, policy: str) -> tuple[Denoised, Denoised]:
    """Run a short generation on both backends, and return both."""
    request = small_request(bundle, STEPS, POLICIES[policy])
    given, wanted = (Pipeline(bundle, backend).generate(request) for backend in (tested, reference))
    return given, wanted


def graph_sizes(bundle: Bundle, graph: Graph, text: int = 0) -> dict[str, int]:
    """Return the sizes of a graph's dynamic axes in a generation of one prompt; ``text`` 0 is the longest text."""
    manifest = bundle.manifest
    sizes = dict(settle(bundle, small_request(bundle, 1, NeverReuse())).sizes)
    if graph in manifest.text.encoder_stages:
        sizes["batch"] = 1
    rest = {"text": text or manifest.text.max_length, "calls": 2, "pairs": max(sizes["patch_frames"] - 1, 1)}
    space = manifest.latent
    if graph not in manifest.vae_graphs():
        return {**sizes, **rest}
    height, width = (sizes[axis] for axis in ("height", "width"))
    if space.tile:
        height, width = (min(side, space.tile // space.spatial_factor) for side in (height, width))
    return {**sizes, **rest, **space.chunk_axes(min(sizes["frames"], space.chunks.latents), height, width)}


def stage_outputs(backend: Backend, graph: Graph, sizes: Mapping[str, int], seed: int = 0) -> Arrays:
    """Return what an engine makes of seeded random inputs."""
    call, buffers = bound(backend.load(graph), backend, examples(graph, sizes, seed), sizes)
    call()
    return {spec.name: buffers[spec.name].read() for spec in graph.outputs}


def error(given: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> float:
    """Return the worst max |given - wanted| / max(1, rms(wanted)) of all tensors, as export records it; NaN stays.

    Raises:
        AssertionError: a tensor has another shape than is wanted.
    """
    worst = []
    for name, value in wanted.items():
        assert given[name].shape == value.shape, f"{name} has shape {given[name].shape}, {value.shape} is wanted"
        reference = value.astype(np.float64)
        difference = np.abs(given[name].astype(np.float64) - reference).max()
        worst.append(float(difference) / max(1.0, float(np.sqrt(np.square(reference).mean()))))
    return float(np.max(worst))
