"""ONNX Runtime's CUDA provider through a fake: what it is told, when the host waits, and what a failure says."""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import DeviceLostError, EngineError, MissingDependencyError
from adacache_engines.onnxruntime import provider
from adacache_engines.onnxruntime.backend import OnnxRuntime, OrtBackend
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.events import Denoised
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu import gpu_checks
from tests.helpers.gpu.fake_cuda import FakeCuda, Status
from tests.helpers.gpu.fake_onnxruntime import SCRATCH, WEIGHTS, InferenceSession, Module
from tests.helpers.model.experts import functions_of_experts, two_experts
from tests.helpers.model.fake_model import BLOCKS, fake_pipeline, functions, request, write_bundle

ON_CUDA = OnnxRuntime(provider="cuda")
POLICIES = {
    "never": NeverReuse(),
    "adacache": AdaCache(codebook=[(0.05, 4), (0.3, 3), (1.0, 1)]),
    "interval": FixedInterval(every=3),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    api = FakeCuda(capacity=1 << 24)
    yield api
    assert api.faults == []


@pytest.fixture
def module(bundle: Bundle, cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """The fake, where a backend finds ONNX Runtime and CUDA."""
    made = Module(cuda, list(bundle.manifest.loop_graphs()), functions(), tmp_path / "onnxruntime")
    install(made, cuda, monkeypatch)
    return made


def install(made: Module, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a backend find the fakes where it looks for ONNX Runtime and CUDA."""
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    monkeypatch.setattr(provider, "_devices", WeakValueDictionary())  # no other test's GPU
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)


def sessions(module: Module) -> list[InferenceSession]:
    return [session for reference in module.sessions if (session := reference()) is not None]


# whole generations


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_a_generation_is_that_of_the_plain_functions(
    bundle: Bundle, module: Module, policy: str, granularity: Any
) -> None:
    asked = request(policy=POLICIES[policy], granularity=granularity)
    given, wanted = (
        Pipeline(bundle, backend).generate(asked) for backend in (ON_CUDA.open(bundle), FakeBackend(functions()))
    )
    np.testing.assert_array_equal(given.latents, wanted.latents)
    assert given.trace.computed() == wanted.trace.computed()
    assert module.preloads.count(None) == 1


@pytest.mark.usefixtures("module")
def test_no_run_waits_for_the_gpu(bundle: Bundle, cuda: FakeCuda) -> None:
    """Neither blocks nor signals wait: between two calls the host waits for what it reads, and for nothing else."""
    pipeline = Pipeline(bundle, ON_CUDA.open(bundle))
    pipeline.generate(request(policy=NeverReuse()))
    waits = {}
    for steps in (4, 8):
        before = cuda.waits
        ran = len(cuda.kernels)
        pipeline.generate(request(policy=NeverReuse(), steps=steps))
        waits[steps] = cuda.waits - before
        assert len(cuda.kernels) - ran >= steps * len(BLOCKS)
    assert waits[8] - waits[4] <= 3 * 4  # in each call for its numbers, and for the two ends of its time


@pytest.mark.usefixtures("module")
def test_two_generations_in_threads(bundle: Bundle) -> None:
    gpu_checks.check_generations_in_threads(bundle, ON_CUDA.open(bundle))


# experts that take turns


@pytest.mark.parametrize("policy", POLICIES)
def test_one_expert_at_a_time(tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """Sessions of an expert end when their work is done, and before those of the other begin."""
    bundle = write_bundle(tmp_path / "experts", **two_experts())
    made = Module(cuda, list(bundle.manifest.loop_graphs()), functions_of_experts(), tmp_path / "onnxruntime")
    install(made, cuda, monkeypatch)
    backend = ON_CUDA.open(bundle)
    asked = request(policy=POLICIES[policy], steps=8)
    pipeline = Pipeline(bundle, backend, expert_offload=True)
    expected = fake_pipeline(tmp_path / "host", functions_of_experts(), **two_experts())[0].generate(asked)
    living = set()
    for switches in ([5], [1, 5]):
        result: Denoised | None = None
        with closing(pipeline.prepare(asked).denoise()) as events:
            for event in events:
                living.add(len(sessions(made)))
                result = event if isinstance(event, Denoised) else None
        assert result is not None
        np.testing.assert_array_equal(result.latents, expected.latents)
        assert list(result.trace.switches()) == switches
    assert living == {len(bundle.manifest.loop_graphs()) - len(bundle.manifest.stages) // 2}


# memory


def test_all_sessions_share_one_arena(bundle: Bundle, module: Module, cuda: FakeCuda) -> None:
    backend = ON_CUDA.open(bundle)
    before = cuda.device_nbytes()
    pipeline = Pipeline(bundle, backend)
    pipeline.generate(request(policy=POLICIES["adacache"]))
    held = sessions(module)
    assert len(held) > len(BLOCKS)
    assert {session.arena for session in held} == {module.arena}
    assert module.arena is not None
    assert module.arena.strategy == provider.ARENA_AS_REQUESTED
    backend.device.synchronize()  # type: ignore[attr-defined]
    assert cuda.device_nbytes() - before >= SCRATCH + WEIGHTS * len(held)
    assert all(session.options.enable_mem_pattern is False for session in held)


def test_all_backends_of_a_process_share_one_stream(bundle: Bundle, module: Module) -> None:
    """The arena is the process's, and hands out memory that another stream may still read."""
    one, other = ON_CUDA.open(bundle), ON_CUDA.open(bundle)
    assert one.device is other.device
    asked = request(policy=POLICIES["interval"])
    pipelines = [Pipeline(bundle, backend) for backend in (one, other)]
    first, second = (pipeline.generate(asked) for pipeline in pipelines)
    np.testing.assert_array_equal(first.latents, second.latents)
    assert {session.stream for session in sessions(module)} == {one.device.stream}  # type: ignore[attr-defined]


@pytest.mark.usefixtures("module")
def test_backends_that_open_at_once_share_one_stream() -> None:
    found: list[CudaDevice] = []
    threads = [threading.Thread(target=lambda: found.append(provider.shared_device())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


@pytest.mark.usefixtures("module")
def test_the_fake_refuses_a_second_stream_in_an_arena(bundle: Bundle, cuda: FakeCuda) -> None:
    backend = ON_CUDA.open(bundle)
    graph = next(graph for graph in bundle.manifest.loop_graphs() if graph.name == "add")
    session = backend.session(graph)
    session.arena.streams.add(-1)
    shape = (1, 1, 4, 3)
    buffers = {spec.name: backend.device.empty(shape, np.dtype(np.float32)) for spec in (*graph.inputs, *graph.outputs)}
    with pytest.raises(EngineError, match="second stream"):
        backend.engine(graph, session).bind(buffers)()
    assert len(cuda.faults) == 1
    cuda.faults.clear()


@pytest.mark.usefixtures("module")
def test_a_generation_takes_no_memory_that_the_one_before_has_not(bundle: Bundle) -> None:
    gpu_checks.check_memory_is_steady(bundle, ON_CUDA.open(bundle))


@pytest.mark.usefixtures("module")
def test_weights_take_memory_of_the_gpu(bundle: Bundle) -> None:
    backend = ON_CUDA.open(bundle)
    graphs = [graph.model_copy(update={"weights_nbytes": 100}) for graph in bundle.manifest.loop_graphs()]
    assert backend.weights_nbytes(graphs) == 100 * len(graphs)
    unknown = graphs[0].model_copy(update={"weights_nbytes": None})
    assert backend.weights_nbytes([*graphs, unknown]) is None


# what the provider is told


@pytest.mark.usefixtures("module")
def test_settings_of_the_provider(bundle: Bundle) -> None:
    backend = ON_CUDA.open(bundle)
    graph = next(iter(bundle.manifest.loop_graphs()))
    session = backend.session(graph)
    assert session.settings == {
        "CUDAExecutionProvider": {
            "device_id": "0",
            "user_compute_stream": str(backend.device.stream),  # type: ignore[attr-defined]
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
    }
    assert session.options.entries["session.use_env_allocators"] == "1"
    assert session.options.entries["session.use_device_allocator_for_initializers"] == "1"


def test_libraries_in_another_folder_of_the_path_are_loaded(
    bundle: Bundle, module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime looks for NVIDIA's packages beside its own, where a pack that is unpacked elsewhere has none."""
    folders = [tmp_path / "site" / "nvidia" / name / "lib" for name in ("cu13", "cudnn")]
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    ON_CUDA.open(bundle)
    assert {str(folder) for folder in folders} <= set(module.preloads)
    assert module.preloads[-1] is None


# failures


def test_a_missing_library_is_named(bundle: Bundle, module: Module, tmp_path: Path, capsys: Any) -> None:
    """The list of providers has CUDA's, and a session opens without an error: on the CPU."""
    library = tmp_path / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir(parents=True)
    library.write_text("the linker complains of this file as it does of a library that it lacks")
    module.missing = True
    with pytest.raises(MissingDependencyError, match=r"CPU instead of CUDAExec.*providers_cuda\.so.*export\[gpu\]"):
        ON_CUDA.open(bundle)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "libcublasLt" in printed.err


def test_a_provider_that_is_not_there_for_another_reason(bundle: Bundle, module: Module) -> None:
    module.missing = True
    with pytest.raises(EngineError, match="took the CPU instead of CUDAExecutionProvider; its log says why"):
        ON_CUDA.open(bundle)


def test_a_provider_that_fails_says_why(bundle: Bundle, module: Module) -> None:
    module.failure = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    with pytest.raises(EngineError, match="cannot start CUDAExecutionProvider: CUDA failure 35"):
        ON_CUDA.open(bundle)


def test_a_run_that_fails_names_the_graph_and_shapes(bundle: Bundle, module: Module) -> None:
    module.refused.add(BLOCKS[1])
    pipeline = Pipeline(bundle, ON_CUDA.open(bundle))
    with pytest.raises(EngineError, match=rf"engine {BLOCKS[1]} failed on hidden \(.*Non-zero status"):
        pipeline.generate(request())


@pytest.mark.usefixtures("module")
def test_a_gpu_that_is_lost_is_told_as_such(bundle: Bundle, cuda: FakeCuda) -> None:
    """Whoever holds the process has to know, so the error is not that of the engine whose call brings it."""
    backend, sizes = ON_CUDA.open(bundle), {"batch": 2, "patch_frames": 3, "tokens": 5}
    graph = bundle.manifest.arithmetic["add"]
    specs = (*graph.inputs, *graph.outputs)
    buffers = {spec.name: backend.device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in specs}
    call = backend.load(graph).bind(buffers)
    call()
    buffers["dropped"] = backend.device.empty((4,), np.dtype(np.float32))
    del buffers["dropped"]  # of which the next call asks the GPU
    cuda.broken = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceLostError, match="this process cannot use the GPU any more; start it again"):
        call()


def test_the_smallest_model_is_a_model() -> None:
    import onnx

    runtime: Any = importlib.import_module("onnxruntime")
    model = onnx.load_from_string(provider.SMALLEST_MODEL)
    onnx.checker.check_model(model, full_check=True)
    OrtBackend(Path())  # the process has its thread pool from here on, whichever test is first
    options = runtime.SessionOptions()
    options.use_per_session_threads = False
    session = runtime.InferenceSession(provider.SMALLEST_MODEL, options, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.full(1, -2, np.float32)})[0] == [2]
