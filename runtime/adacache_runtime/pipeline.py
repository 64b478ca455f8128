"""A bundle with its engines loaded: make videos, or prepare a generation and read its events."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.contract.engine import Backend, BackendConfig
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_runtime.checking import Checked, check
from adacache_runtime.denoising.experts import OneExpert, check_offload
from adacache_runtime.denoising.stages import Engines
from adacache_runtime.events import Called, Decoded, Denoised, Event
from adacache_runtime.generation import Model, Prepared
from adacache_runtime.media.frames import Frames
from adacache_runtime.policy_names import PolicyInfo, available_policies
from adacache_runtime.request import Request
from adacache_runtime.request_options import RequestOptions, request_from
from adacache_runtime.text.device import TextDevice, open_text_backend
from adacache_runtime.text.embedding_cache import EmbeddingCache
from adacache_runtime.trace import CallRecord
from adacache_runtime.video import Video

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Pipeline:
    """A bundle with its engines loaded, for any number of generations; none shares state with another.

    Attributes:
        bundle: the opened bundle.
        backend: the backend that runs it.
        text_backend: the backend that runs its text encoder.
        engines: the engines of its loop.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        progress: Callable[[int], None] = lambda _: None,
        text_backend: Backend | None = None,
        embedding_cache: Path | None = None,
        expert_offload: bool = False,
    ) -> None:
        """Load the engines.

        Args:
            bundle: the opened bundle.
            backend: the backend that runs it.
            progress: gets 1 for each engine.
            text_backend: the backend that runs the text encoder; None = the same.
            embedding_cache: a folder where prompts' embeddings are kept, and found again; None = nowhere.
            expert_offload: whether engines of one expert at a time are loaded, at first those of the first one.

        Raises:
            EngineError: an engine cannot be loaded.
            InputError: the folder cannot be made, or the model is one transformer and has no experts.
        """
        if expert_offload:
            check_offload(bundle.folder, bundle.manifest)
        self.bundle, self.backend, self.text_backend = bundle, backend, text_backend or backend
        manifest = bundle.manifest
        one_expert = OneExpert(manifest, backend, progress) if expert_offload else None
        stages, arithmetic, signals = {}, {}, {}
        if one_expert is not None:
            with one_expert.held(0):
                stages = one_expert.stages
        else:
            for stage in manifest.stages:
                stages[stage.graph.name] = backend.load(stage.graph)
                progress(1)
        for name, graph in manifest.arithmetic.items():
            arithmetic[name] = backend.load(graph)
            progress(1)
        for graph in manifest.signal_graphs():
            signals[graph.name] = backend.load(graph)
            progress(1)
        self.engines = Engines(stages, arithmetic, signals, one_expert)
        cache = EmbeddingCache(embedding_cache, manifest) if embedding_cache else None
        self._model: Model | None = Model(bundle, backend, self.text_backend, self.engines, cache)

    @classmethod
    def open(
        cls,
        bundle: Path | str | Bundle,
        backend: BackendConfig = OnnxRuntime(),
        text_device: TextDevice = "backend",
        embedding_cache: Path | None = None,
        expert_offload: bool = False,
    ) -> "Pipeline":
        """Open a bundle.

        Args:
            bundle: folder that ``adacache-export`` made, or the opened bundle.
            backend: what runs the model, such as ``OnnxRuntime(provider="cuda")`` or ``TensorRT()``.
            text_device: where the text encoder runs: where the model does, or on the ``cpu``, through ONNX Runtime.
            embedding_cache: a folder where prompts' embeddings are kept, and found again; None = nowhere.
            expert_offload: whether engines of one expert at a time are loaded, for a device that cannot hold both; a
                call of the other expert closes them, and opens its own. Only for a model of several experts.

        Raises:
            BundleError: it is not an unchanged bundle.
            InputError, MissingDependencyError: the backend or its provider cannot be had here, or the model is one
                transformer and has no experts.
            EngineError: there is no GPU, no plan for it, or an engine cannot be loaded.
        """
        whole = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        if expert_offload:
            check_offload(whole.folder, whole.manifest)
        with ExitStack() as stack:  # closes what is open already where the rest cannot be opened
            opened = backend.open(whole)
            stack.callback(opened.close)
            text_backend = open_text_backend(whole, backend, opened, text_device)
            if text_backend is not opened:
                stack.callback(text_backend.close)
            pipeline = cls(
                whole,
                opened,
                text_backend=text_backend,
                embedding_cache=embedding_cache,
                expert_offload=expert_offload,
            )
            stack.pop_all()
        return pipeline

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines and the device; generations that are under way must have ended. May be called again."""
        if self._model is None:
            return
        self._model = None
        self.engines = Engines({}, {}, {})
        if self.text_backend is not self.backend:
            self.text_backend.close()
        self.backend.close()

    def prepare(self, request: Request | Checked) -> Prepared:
        """Check a request once, tokenise it once, and estimate its memory once; nothing is allocated.

        Args:
            request: a request, or one that :func:`adacache_runtime.checking.check` has checked against this bundle.

        Raises:
            OutOfRangeError: a number or size is outside what the model or the bundle allows.
            InputError: the request does not fit the bundle, or the policy needs a probe that it does not have.
            PolicyError: the policy cannot decide at this granularity.
            EngineError: an engine does not run at this size.
        """
        self._opened()
        return Prepared(self._opened, request if isinstance(request, Checked) else check(self.bundle, request))

    def _opened(self) -> Model:
        if self._model is None:
            raise InputError(f"the pipeline of {self.bundle.folder} is closed; open the bundle again")
        return self._model

    def request(self, prompt: str | Sequence[str], **options: "Unpack[RequestOptions]") -> Request:
        """Return the request for this bundle that a prompt and options make.

        Args:
            prompt: one prompt, or several that are made at once.
            **options: see :class:`adacache_runtime.request_options.RequestOptions`.

        Raises:
            InputError: an option or a name is unknown, or two options say the same in different ways.
            OutOfRangeError: the model makes no video of that duration.
        """
        return request_from(self.bundle.manifest, prompt, options)

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        on_call: Callable[[CallRecord], None] | None = None,
        **options: "Unpack[RequestOptions]",
    ) -> Video: ...

    @overload
    def __call__(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        on_call: Callable[[CallRecord], None] | None = None,
        **options: "Unpack[RequestOptions]",
    ) -> list[Video]: ...

    def __call__(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        on_call: Callable[[CallRecord], None] | None = None,
        **options: "Unpack[RequestOptions]",
    ) -> Video | list[Video]:
        """Make a video of a prompt, or a list of videos of a list of prompts.

        Args:
            prompt: one prompt, or several that are made at once.
            on_call: called with each call's record as it becomes known.
            **options: size, length, seed, policy, images and more; see
                :class:`adacache_runtime.request_options.RequestOptions`.

        Raises:
            InputError, OutOfRangeError, PolicyError, EngineError: as of :meth:`request` and :meth:`prepare`; or there
                is too little memory.
            NonFiniteError: NaN or infinity in the latents; names the call and the stage.
        """
        videos = self.videos(self.request(prompt, **options), on_call)
        return videos[0] if isinstance(prompt, str) else videos

    def events(self, prompt: str | Sequence[str], **options: "Unpack[RequestOptions]") -> Generator[Event, None, None]:
        """Yield what happens while a video is made; closing the generator cancels it.

        Args:
            prompt, **options: as of a call of the pipeline.

        Yields:
            Events, see :mod:`adacache_runtime.events`.
        """
        return self.prepare(self.request(prompt, **options)).events()

    def videos(self, request: Request, on_call: Callable[[CallRecord], None] | None = None) -> list[Video]:
        """Make the videos of a request, one for each prompt.

        Args:
            request: the request.
            on_call: called with each call's record as it becomes known.

        Raises:
            InputError, OutOfRangeError, PolicyError, EngineError, NonFiniteError: as of a call of the pipeline.
        """
        prepared = self.prepare(request)
        shape = prepared.video
        denoised: Denoised | None = None
        frames: list[list[Frames]] = [[] for _ in shape.fps]
        with closing(prepared.events()) as events:
            for event in events:
                if isinstance(event, Called) and on_call is not None:
                    on_call(event.record)
                elif isinstance(event, Denoised):
                    denoised = event
                elif isinstance(event, Decoded):
                    frames[event.prompt].append(event.frames)
        assert denoised is not None
        return [
            Video(np.concatenate(parts) if parts else None, latents, denoised.trace, fps, shape.width, shape.height)
            for parts, latents, fps in zip(frames, denoised.latents, shape.fps, strict=True)
        ]

    def free_nbytes(self) -> int | None:
        """Return the bytes of memory that are free beside the engines' weights; None = the device does not say."""
        return self._opened().free_nbytes()

    def policies(self) -> list[PolicyInfo]:
        """Return all policies that can be named for this bundle, and why it cannot run some of them."""
        return available_policies(self.bundle)

    def generate(self, request: Request, on_call: Callable[[CallRecord], None] = lambda _: None) -> Denoised:
        """Run one generation up to its latents; ``on_call`` gets each call's record as it becomes known.

        Raises:
            OutOfRangeError, InputError, PolicyError, EngineError: as of :meth:`prepare`; or there is too little memory.
            NonFiniteError: NaN or infinity in the latents; names the call and the stage.
        """
        with closing(self.prepare(request).denoise()) as events:
            for event in events:
                if isinstance(event, Called):
                    on_call(event.record)
                elif isinstance(event, Denoised):
                    return event
        raise AssertionError("a generation ends with its latents")

    def calls(self, request: Request) -> Generator[CallRecord, None, Denoised]:
        """Run one generation up to its latents, call by call, so that something else can be done between two calls.

        Returns, as a generator does, what :meth:`generate` returns, and raises the same when it is first advanced.
        """
        with closing(self.prepare(request).denoise()) as events:
            for event in events:
                if isinstance(event, Called):
                    yield event.record
                elif isinstance(event, Denoised):
                    return event
        raise AssertionError("a generation ends with its latents")
