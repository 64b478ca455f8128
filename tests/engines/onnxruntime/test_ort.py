"""The ONNX Runtime backend, and the exported reference model on it in each precision."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import open_bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import HostBuffer
from adacache_engines.errors import EngineError, InputError, MissingDependencyError
from adacache_engines.onnxruntime.backend import OnnxRuntime, OrtBackend
from adacache_engines.onnxruntime.provider import PROVIDERS
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.pipeline import Pipeline
from tests.helpers.originals.reference import request

SIZES = {"batch": 2, "patch_frames": 3, "tokens": 4, "text": 5, "samples": 1, "frames": 3, "height": 4, "width": 4}


def graph_of(pipeline: Pipeline, name: str) -> Graph:
    manifest = pipeline.bundle.manifest
    return {graph.name: graph for graph in manifest.loop_graphs()}[name]


def buffers(graph: Graph, sizes: Mapping[str, int] = SIZES) -> dict[str, HostBuffer]:
    random = np.random.default_rng(0)
    made = {}
    for spec in (*graph.inputs, *graph.outputs):
        values = random.standard_normal(spec.shape({**sizes, "calls": 1, "pairs": 2}))
        made[spec.name] = HostBuffer(
            np.ascontiguousarray(values > -9 if spec.dtype == "bool" else values).astype(NUMPY_DTYPES[spec.dtype])
        )
    return made


# binding


def test_a_binding_that_does_not_fit_names_every_problem(pipeline: Pipeline) -> None:
    graph = graph_of(pipeline, "temporal.01")
    given: dict[str, Any] = buffers(graph)
    del given["modulation"]
    given["text"] = HostBuffer(np.zeros((2, 5, 97), np.float32))
    given["text_mask"] = HostBuffer(np.zeros((2, 6), np.bool_))
    given["hidden_out"] = HostBuffer(np.zeros((2, 3, 4, 96), np.float64))
    given["attn"] = HostBuffer(np.zeros((2, 3, 96), np.float32))
    given["colour"] = HostBuffer(np.zeros(1, np.float32))
    with pytest.raises(EngineError) as caught:
        pipeline.backend.load(graph).bind(given)
    message = str(caught.value)
    for words in (
        "engine temporal.01 cannot be bound",
        "modulation is missing",
        "text has shape (2, 5, 97): 96 should be 96, as in the model",
        "text_mask has shape (2, 6): text should be 5, as in text",
        "hidden_out is float64, expected float32",
        "attn has shape (2, 3, 96), expected attn float32 (batch, patch_frames, tokens, 96)",
        "no tensor is called colour",
    ):
        assert words in message, message


def test_axes_of_one_name_have_one_size(pipeline: Pipeline) -> None:
    graph = graph_of(pipeline, "spatial.00")
    given = buffers(graph)
    given["modulation"] = HostBuffer(np.zeros((3, 6, 96), np.float32))
    with pytest.raises(EngineError, match=r"modulation has shape \(3, 6, 96\): batch should be 2, as in hidden"):
        pipeline.backend.load(graph).bind(given)


def test_shapes_that_only_the_graph_knows_fail_at_the_call(pipeline: Pipeline) -> None:
    """The number of tokens follows from rows and columns, which no named axis says."""
    graph = graph_of(pipeline, "embed")
    call = pipeline.backend.load(graph).bind(buffers(graph, {**SIZES, "tokens": 5}))
    with pytest.raises(EngineError, match=r"engine embed failed on latents \(2, 4, 3, 4, 4\)"):
        call()


@pytest.mark.parametrize("name", ["spatial.00", "temporal.01", "subtract", "hidden_change", "combine"])
def test_outputs_land_where_the_caller_said(pipeline: Pipeline, name: str) -> None:
    """In the very memory that was bound, at every call, also as a part of a larger buffer."""
    graph = graph_of(pipeline, name)
    given = buffers(graph)
    outputs = [spec.name for spec in graph.outputs]
    larger = {key: np.full((3, *given[key].shape), 7, given[key].dtype) for key in outputs}
    addresses = {key: larger[key][1].ctypes.data for key in outputs}
    given |= {key: HostBuffer(larger[key]).row(1) for key in outputs}
    assert {key: given[key].address for key in outputs} == addresses
    call = pipeline.backend.load(graph).bind(given)
    call()
    first = {key: given[key].read() for key in outputs}
    for key in outputs:
        assert (larger[key][0] == 7).all()
        assert (larger[key][2] == 7).all()
        assert not (larger[key][1] == 7).any()
        larger[key][1] = 7
    call()
    for key in outputs:
        np.testing.assert_array_equal(larger[key][1], first[key])


def test_a_call_sees_what_was_written_since_it_was_bound(pipeline: Pipeline) -> None:
    graph = graph_of(pipeline, "add")
    given = buffers(graph)
    call = pipeline.backend.load(graph).bind(given)
    for value in (1.0, 2.0):
        given["hidden"].write(np.full(given["hidden"].shape, value, np.float32))
        call()
        np.testing.assert_array_equal(given["hidden_out"].array, np.float32(value) + given["residual"].array)


def test_an_addition_may_be_done_in_place(pipeline: Pipeline) -> None:
    graph = graph_of(pipeline, "add")
    given = buffers(graph)
    given["hidden_out"] = given["hidden"]
    expected = given["hidden"].array + given["residual"].array
    pipeline.backend.load(graph).bind(given)()
    np.testing.assert_array_equal(given["hidden"].array, expected)


# loading


def test_an_unknown_provider() -> None:
    with pytest.raises(InputError, match="provider 'gpu' is unknown; known: cpu, cuda, tensorrt"):
        OnnxRuntime(provider="gpu")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_this_onnxruntime_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=rf"no {PROVIDERS[provider]}; .*adacache-export\[gpu\]"):
        OrtBackend(tmp_path, OnnxRuntime(provider))


@pytest.mark.parametrize(("provider", "extra"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_no_onnxruntime_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=rf"onnxruntime is not installed.*adacache-export\[{extra}\]"):
        OrtBackend(tmp_path, OnnxRuntime(provider))


@pytest.mark.parametrize("content", [None, b"", b"no graph at all"])
def test_a_graph_that_cannot_be_loaded(pipeline: Pipeline, tmp_path: Path, content: bytes | None) -> None:
    graph = graph_of(pipeline, "add")
    (tmp_path / "onnx").mkdir()
    if content is not None:
        (tmp_path / graph.path).write_bytes(content)
    with pytest.raises(EngineError, match=r"CPUExecutionProvider cannot load .*onnx/add\.onnx"):
        OrtBackend(tmp_path).load(graph)


# whole generations

SHORT: dict[str, Any] = {"steps": 6, "policy": FixedInterval(every=2)}


def test_two_pipelines_in_one_process(pipeline: Pipeline, bundle_folder: Path) -> None:
    """The second asks for another number of threads, which the first has settled."""
    alone = pipeline.generate(request(**SHORT)).latents
    other = Pipeline.open(bundle_folder, OnnxRuntime(threads=1))
    np.testing.assert_array_equal(other.generate(request(**SHORT)).latents, alone)
    np.testing.assert_array_equal(pipeline.generate(request(**SHORT)).latents, alone)


def test_the_same_request_gives_the_same_latents(pipeline: Pipeline) -> None:
    seeded = {**SHORT, "latents": None, "seed": 3}
    one = pipeline.generate(request(**seeded)).latents
    pipeline.generate(request(**SHORT, granularity="block"))
    np.testing.assert_array_equal(pipeline.generate(request(**seeded)).latents, one)


def test_memory_that_a_run_holds(pipeline: Pipeline) -> None:
    """Hidden states of 2 prompts x 2 branches x 5 frames x 15 tokens x 96, one or one a block."""
    one = 4 * 5 * 15 * 96 * 4  # bytes
    held = pipeline.prepare(request()).residual_nbytes()
    assert (held["stack"], held["block"]) == (one, 6 * one)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least", "most"), [("bf16", 2e-3, 3e-2), ("fp16", 2e-4, 4e-3)])
def test_half_precision_is_near_full_precision(
    pipeline: Pipeline,
    exported: Callable[..., Path],
    precision: str,
    least: float,
    most: float,
) -> None:
    """Relative L2 of the latents after 30 steps. Timesteps and sizes are not rounded to bfloat16 here: in a network
    of random weights that alone is ten times the error of its arithmetic.
    """
    bundle = open_bundle(exported(precision))
    unrounded = bundle.manifest.sampler.model_copy(update={"condition_dtype": "float32"})
    half = Pipeline.open(replace(bundle, manifest=bundle.manifest.model_copy(update={"sampler": unrounded})))
    assert (
        half.prepare(request()).residual_nbytes()["stack"]
        == pipeline.prepare(request()).residual_nbytes()["stack"] // 2
    )
    for policy in ({}, {"policy": FixedInterval(every=2)}):
        full, stack = (which.generate(request(**policy)).latents for which in (pipeline, half))
        block = half.generate(request(**policy, granularity="block")).latents
        assert stack.dtype == np.float32
        assert least < np.linalg.norm(stack - full) / np.linalg.norm(full) < most
        assert np.linalg.norm(block - stack) / np.linalg.norm(stack) < most


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_process_with_sessions_of_its_own(bundle_folder: Path, first: str) -> None:
    """Sessions with their own threads and ours live together, whoever comes first."""
    code = f"""
import onnxruntime
from adacache_runtime.samplers import registry as sampling
from adacache_runtime.pipeline import OnnxRuntime, Pipeline
theirs = lambda: onnxruntime.InferenceSession({str(bundle_folder / "onnx" / "add.onnx")!r})
ours = lambda: Pipeline.open({str(bundle_folder)!r}, OnnxRuntime(threads=1, shared_threads={first == "theirs"}))
for make in ({"theirs, ours" if first == "theirs" else "ours, theirs"}):
    make()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
