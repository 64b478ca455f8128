"""What the tests for a GPU do with back ends, apart from any GPU: run, compare, run beside each other."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.engine import Backend
from adacache_engines.tensorrt.arena import Arena
from adacache_runtime.caching.policies.never import NeverReuse
from adacache_runtime.caching.policy import Policy
from adacache_runtime.pipeline import Pipeline, Result
from adacache_runtime.request import Captions, Request, settle
from tools.gpu.measure import bound, examples

Arrays = dict[str, NDArray[Any]]
JOIN_S = 300.0
# variables of the environment that tell the tests what the check knows
BUNDLES, RTX_TARGET, NO_TARGET = "ADACACHE_BUNDLES", "ADACACHE_RTX_TARGET", "none"


class PrivateArena(Arena):
    """Memory of its own for every context."""

    def memory(self) -> Any:
        return self._device.allocate(max(claim.nbytes for claim in self._claims))


def graph_sizes(bundle: Bundle, graph: Graph, text: int = 0) -> dict[str, int]:
    """Sizes of a graph's dynamic axes in a generation of one prompt; ``text`` 0 = the longest."""
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
    return {**sizes, **rest, **space.window_axes(min(sizes["frames"], space.windows.latents), height, width)}


def stage_outputs(backend: Backend, graph: Graph, sizes: Mapping[str, int], seed: int = 0) -> Arrays:
    """What an engine makes of seeded random inputs."""
    call, buffers = bound(backend.load(graph), backend, examples(graph, sizes, seed), sizes)
    call()
    return {spec.name: buffers[spec.name].read() for spec in graph.outputs}


def error(given: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> float:
    """Worst max |given - wanted| / max(1, rms(wanted)) over all tensors, as export records it; NaN if there is one."""
    worst = []
    for name, value in wanted.items():
        assert given[name].shape == value.shape
        reference = value.astype(np.float64)
        difference = np.abs(given[name].astype(np.float64) - reference).max()
        worst.append(float(difference) / max(1.0, float(np.sqrt(np.square(reference).mean()))))
    return float(np.max(worst))


def small_request(bundle: Bundle, steps: int, policy: Policy[Any], seed: int = 0, prompts: int = 1) -> Request:
    """A generation of the bundle's default video with random text of the longest length."""
    rule = bundle.manifest.text
    random = np.random.default_rng(seed)
    states = random.standard_normal((prompts, rule.max_length, rule.width), np.float32)
    captions = Captions(states, np.ones((prompts, rule.max_length), np.bool_))
    return Request(captions=captions, steps=steps, policy=policy, seed=seed, keep_calls=True)


def same(one: Result, other: Result) -> bool:
    """Whether two generations went alike, bit for bit: latents before every call, schedule, distances."""
    assert one.calls is not None
    assert other.calls is not None
    return (
        np.array_equal(one.latents, other.latents)
        and np.array_equal(one.calls, other.calls)
        and [call.compute for call in one.trace.calls] == [call.compute for call in other.trace.calls]
        and [call.observation for call in one.trace.calls] == [call.observation for call in other.trace.calls]
    )


def beside_each_other(pipeline: Pipeline, requests: Sequence[Request]) -> list[Result]:
    """A thread each, begun together; raises what any of them raised."""
    results: dict[int, Result] = {}
    failed: list[BaseException] = []
    start = threading.Barrier(len(requests))

    def work(index: int) -> None:
        try:
            start.wait(JOIN_S)
            results[index] = pipeline.generate(requests[index])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_S)
    if failed:
        raise failed[0]
    return [results[index] for index in range(len(requests))]
