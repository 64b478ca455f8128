"""Open a bundle and generate: the few lines that most users need.

>>> pipeline = Pipeline.open("model.adacache")
>>> request = Request(height=480, width=854, frames=51, prompts=("a boat",), policy=PRESETS["adacache-fast"])
>>> result = pipeline.generate(request)
>>> write_video(Path("boat.mp4"), render(pipeline.bundle, pipeline.backend, result.latents[0]), fps=24)
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.bundle.manifest import X_MASK
from adacache_engines.bundle.shape_profiles import check_profiles
from adacache_engines.contract.dry_run import Known
from adacache_engines.contract.engine import Backend, BackendConfig
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_runtime.caching.groups import granularities, residual_nbytes
from adacache_runtime.caching.policy import Granularity
from adacache_runtime.denoising.assembly import assemble
from adacache_runtime.denoising.denoiser import Denoiser
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.denoising.segments import segments
from adacache_runtime.denoising.stages import Engines
from adacache_runtime.memory.advice import check_fit
from adacache_runtime.memory.estimate import MemoryPlan, plan_memory
from adacache_runtime.request import Request, Settled, settle
from adacache_runtime.samplers.registry import dtype_of_conditions
from adacache_runtime.samplers.update import Floats
from adacache_runtime.text import prompts as text
from adacache_runtime.text.device import TextDevice, open_text_backend
from adacache_runtime.text.embedding_cache import EmbeddingCache
from adacache_runtime.text.encoder import cached
from adacache_runtime.trace import CallRecord, Trace


@dataclass(frozen=True)
class Result:
    """What a generation gives.

    Attributes:
        latents: (prompts, channels, frames, height, width) float32.
        trace: of all calls.
        calls: (calls, prompts, ...) the latents before each call, if they were asked for.
    """

    latents: NDArray[np.float32]
    trace: Trace
    calls: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Started:
    """A generation that is ready for its first call.

    Attributes:
        denoiser: the denoising loop, with bound buffers and engines.
        settled: the request with every default filled in.
        sizes: of all dynamic axes.
    """

    denoiser: Denoiser
    settled: Settled
    sizes: dict[str, int]


class Pipeline:
    """A bundle with its engines loaded, for any number of generations; none shares state with another.

    Attributes:
        bundle: that was opened.
        backend: that runs it.
        text_backend: that runs its text encoder.
        engines: loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        progress: Callable[[int], None] = lambda _: None,
        text_backend: Backend | None = None,
        embedding_cache: Path | None = None,
    ) -> None:
        """Loads the engines.

        Args:
            bundle: opened.
            backend: that runs it.
            progress: gets 1 for each engine.
            text_backend: that runs the text encoder; None = the same.
            embedding_cache: a folder where prompts' embeddings are kept, and found again; None = nowhere.

        Raises:
            EngineError: an engine cannot be loaded.
            InputError: the folder cannot be made.
        """
        self.bundle, self.backend, self.text_backend = bundle, backend, text_backend or backend
        self._cache = EmbeddingCache(embedding_cache, bundle.manifest) if embedding_cache else None
        self._known: Known = {}
        manifest = bundle.manifest
        stages, arithmetic, signals = {}, {}, {}
        for stage in manifest.stages:
            stages[stage.graph.name] = backend.load(stage.graph)
            progress(1)
        for name, graph in manifest.arithmetic.items():
            arithmetic[name] = backend.load(graph)
            progress(1)
        for graph in manifest.signal_graphs():
            signals[graph.name] = backend.load(graph)
            progress(1)
        self.engines = Engines(stages, arithmetic, signals)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        backend: BackendConfig = OnnxRuntime(),
        text_device: TextDevice = "backend",
        embedding_cache: Path | None = None,
    ) -> "Pipeline":
        """Opens a bundle.

        Args:
            folder: folder that ``adacache-export`` made.
            backend: what runs the model, such as ``OnnxRuntime(provider="cuda")`` or ``TensorRT()``.
            text_device: where the text encoder runs: where the model does, or on the ``cpu``, through ONNX Runtime.
            embedding_cache: a folder where prompts' embeddings are kept, and found again; None = nowhere.

        Raises:
            BundleError: it is not an unchanged bundle.
            InputError, MissingDependencyError: the backend or its provider cannot be had here.
            EngineError: there is no GPU, no plan for it, or an engine cannot be loaded.
        """
        bundle = open_bundle(folder)
        opened = backend.open(bundle)
        text_backend = open_text_backend(bundle, backend, opened, text_device)
        return cls(bundle, opened, text_backend=text_backend, embedding_cache=embedding_cache)

    def generate(self, request: Request, on_call: Callable[[CallRecord], None] = lambda _: None) -> Result:
        """Runs one generation; ``on_call`` gets each call's record as it becomes known.

        Raises:
            OutOfRangeError: a number or size is outside what the model or the bundle allows.
            InputError: the request does not fit the bundle, the policy needs a probe that it does not have, or the
                memory that is free is too small; nothing has run then.
            NonFiniteError: NaN or infinity in the latents; names the call and the stage.
        """
        results: list[Result] = []

        def whole() -> Iterator[CallRecord]:
            results.append((yield from self.calls(request)))

        for record in whole():
            on_call(record)
        return results[0]

    def calls(self, request: Request) -> Generator[CallRecord, None, Result]:
        """Runs one generation call by call, for who does something between two calls: several generations in turn.

        Returns, as a generator does, the result. Raises what :meth:`generate` raises, the first time it is advanced.
        """
        return (yield from self.calls_of(request, self.start(request)))

    def calls_of(self, request: Request, started: Started) -> Generator[CallRecord, None, Result]:
        """:meth:`calls`, of a request that was started by :meth:`start`."""
        before: list[NDArray[np.float32]] = []

        def keep(_call: int, latents: Latents) -> None:
            if request.keep_calls:
                before.append(latents.read())

        records = []
        for record in started.denoiser.records(keep):
            records.append(record)
            yield record
        calls = np.stack(before) if request.keep_calls else None
        trace = Trace(tuple(records), started.sizes, started.settled.granularity)
        return Result(started.denoiser.latents.read(), trace, calls)

    def start(self, request: Request) -> Started:
        """Checks a request, allocates what it takes, and encodes its text, for who drives the loop in a way of their
        own. Raises what :meth:`generate` raises before its first call.
        """
        settled = settle(self.bundle, request)
        read = text.read_text(self.bundle, request)
        plan = self._memory(request, settled, read)
        check_fit(request, settled, plan, self.backend.device.free_nbytes(), self.memory)
        sizes = self._sizes(settled, read)
        return Started(self._prepare(request, settled, read, sizes), settled, sizes)

    def memory(self, request: Request, references: Sequence[Sequence[int]] = ()) -> MemoryPlan:
        """What a generation will take, by kind; nothing is allocated.

        Args:
            request: of the generation.
            references: shapes of pixels that are encoded before the engines are loaded.

        Raises:
            OutOfRangeError, InputError: as :meth:`generate`, but for the memory.
            EngineError: an engine does not run at this size.
        """
        settled = settle(self.bundle, request)
        return self._memory(request, settled, text.read_text(self.bundle, request), references)

    def residual_nbytes(self, request: Request) -> dict[Granularity, int]:
        """Memory that cached residuals take, by granularity."""
        sizes = settle(self.bundle, request).sizes
        manifest = self.bundle.manifest
        return {choice: residual_nbytes(manifest, sizes, choice) for choice in granularities(manifest)}

    def _memory(
        self, request: Request, settled: Settled, read: text.Text, references: Sequence[Sequence[int]] = ()
    ) -> MemoryPlan:
        sizes = self._sizes(settled, read)
        encodes = self.text_backend is self.backend and not cached(read.tokens, self._cache)
        return plan_memory(
            self.bundle, self.backend, self.engines, request, settled, sizes, encodes, references, self._known
        )

    def _sizes(self, settled: Settled, read: text.Text) -> dict[str, int]:
        """Of all dynamic axes."""
        sizes = {**settled.sizes, "text": read.length}
        check_profiles(self.bundle.manifest, sizes)
        return sizes

    def _prepare(self, request: Request, settled: Settled, read: text.Text, sizes: dict[str, int]) -> Denoiser:
        manifest, device = self.bundle.manifest, self.backend.device
        captions = text.branches(self.bundle, self.text_backend, read, self._cache)
        assembly = assemble(manifest, self.engines, device, request, settled, sizes)
        tensors = assembly.stages.tensors
        branches = assembly.stages.branches
        dtype = dtype_of_conditions(manifest)

        def condition(values: Floats) -> Floats:
            return values.astype(dtype).astype(np.float32)

        conditions: dict[str, NDArray[Any]] = {
            "captions": captions.embeddings,
            "text_mask": captions.mask,
            "fps": condition(np.tile(settled.fps, branches)),
            "height": condition(np.array([settled.height], np.float32)),
            "width": condition(np.array([settled.width], np.float32)),
        }
        if X_MASK in tensors:  # all frames are generated, unless a mask says otherwise at each call
            conditions[X_MASK] = np.ones(tensors[X_MASK].shape, np.bool_)
        for name, value in conditions.items():
            if name in tensors:
                tensors[name].write(value.astype(tensors[name].dtype))
        units, order = settled.run.units, manifest.guidance.order
        parts = segments(manifest, settled.updates, settled.granularity, units, settled.guidance, order)
        return Denoiser(assembly, parts, settled.updates, request.policy, request.scope, condition)
