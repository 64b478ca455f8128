"""The one way from a checked request to a video: its memory is estimated, and its events are read."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import IMAGE_STATES, VIDEO_CONDITION, X_MASK
from adacache_engines.contract.dry_run import KnownWorkspaces
from adacache_engines.contract.engine import Backend
from adacache_runtime.caching.groups import granularities, residual_nbytes
from adacache_runtime.caching.policy import Granularity
from adacache_runtime.checking import Checked, Loop, VideoShape, check
from adacache_runtime.conditioning.encoded_video import video_condition
from adacache_runtime.conditioning.image_states import image_states, square_of
from adacache_runtime.conditioning.references import alignment, place
from adacache_runtime.denoising.assembly import assemble
from adacache_runtime.denoising.denoiser import Denoiser
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.denoising.stages import Engines
from adacache_runtime.events import Called, Decoded, Denoised, Event, ImagesEncoded, TextEncoded
from adacache_runtime.media.pictures import resize
from adacache_runtime.memory.advice import check_fit
from adacache_runtime.memory.estimate import MemoryEstimate, estimate_memory
from adacache_runtime.request import Request
from adacache_runtime.samplers.registry import condition_dtype
from adacache_runtime.samplers.update import Floats
from adacache_runtime.settled import Settled, initial_noise
from adacache_runtime.text.captions import Captions
from adacache_runtime.text.embedding_cache import EmbeddingCache
from adacache_runtime.text.encoder import cached
from adacache_runtime.text.prompts import branches
from adacache_runtime.trace import Trace
from adacache_runtime.vae.decode import stream
from adacache_runtime.vae.encode import drawn, encode


@dataclass(frozen=True)
class Model:
    """An opened bundle with its engines loaded; generations share it, and none changes it.

    Attributes:
        bundle: the opened bundle.
        backend: the backend that runs it.
        text_backend: the backend that runs its text encoder.
        engines: the engines of its loop.
        cache: prompt embeddings on the disk; None = there are none.
        known: what engines said of their activations.
    """

    bundle: Bundle
    backend: Backend
    text_backend: Backend
    engines: Engines
    cache: EmbeddingCache | None = None
    known: KnownWorkspaces = field(default_factory=dict)

    def free_nbytes(self) -> int | None:
        """Return the bytes of the device's memory that are free beside the engines' weights; None = not known.

        Where experts take turns, the weights are those of the largest expert, whichever is loaded now.
        """
        free, one_expert = self.backend.device.free_nbytes(), self.engines.one_expert
        return free if free is None or one_expert is None else free - one_expert.missing_nbytes()


def estimate(model: Model, checked: Checked) -> MemoryEstimate:
    """Return the memory that a generation takes at most; nothing is allocated.

    Raises:
        EngineError: an engine does not run at this size.
        OutOfRangeError: nor does the decoder or the encoder at these tiles.
    """
    made: dict[tuple[object, ...], MemoryEstimate] = {}
    for loop in checked.loops:
        key = (loop.settled.masking is None, loop.settled.encoded, *sorted(loop.sizes.items()))
        if key not in made:
            encodes = model.text_backend is model.backend and not cached(loop.text.tokens, model.cache)
            made[key] = estimate_memory(
                model.bundle, model.backend, model.engines, loop.request, loop.settled, loop.sizes, encodes, model.known
            )
    return max(made.values(), key=lambda memory: memory.beside_weights)


@dataclass(frozen=True)
class Begun:
    """A loop that is allocated and ready for its first call.

    Attributes:
        denoiser: the denoising loop, with bound buffers and engines.
        settled: the request with every default filled in.
        sizes: sizes of all dynamic axes.
    """

    denoiser: Denoiser
    settled: Settled
    sizes: dict[str, int]


class Prepared:
    """A generation that was checked, tokenised and estimated once; it holds no array of the video's size.

    :meth:`events` may be called any number of times, also at once; runs share no state, and give the same.

    Attributes:
        checked: the request, checked against the bundle.
        memory: estimate of the memory that a run takes.
    """

    def __init__(self, opened: Callable[[], Model], checked: Checked) -> None:
        """Estimate the memory.

        Args:
            opened: returns the model, or raises where it was closed meanwhile.
            checked: the request, checked against the model's bundle.
        """
        self.checked, self._opened = checked, opened
        self.memory = estimate(opened(), checked)

    @property
    def _model(self) -> Model:
        return self._opened()

    @property
    def request(self) -> Request:
        """The request."""
        return self.checked.request

    @property
    def video(self) -> VideoShape:
        """Size and length of the videos."""
        return self.checked.video

    @property
    def calls(self) -> int:
        """Number of calls of the denoiser."""
        return self.checked.calls

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user, such as an image that had to move to another frame."""
        return self.checked.notes

    def residual_nbytes(self) -> dict[Granularity, int]:
        """Return the bytes that cached residuals would take, by granularity."""
        manifest = self._model.bundle.manifest
        sizes = self.checked.settled.sizes
        return {choice: residual_nbytes(manifest, sizes, choice) for choice in granularities(manifest)}

    def check_free(self) -> None:
        """Check that the memory that is free now is enough.

        Raises:
            InputError: it is not; has the numbers, and each single change of the request that would make it fit.
        """
        model, checked = self._model, self.checked
        free = model.free_nbytes()
        check_fit(
            checked.request,
            checked.settled,
            self.memory,
            free,
            lambda changed: estimate(model, check(model.bundle, changed)),
        )

    def events(self) -> Generator[Event, None, None]:
        """Run the generation; closing the generator cancels it and frees what it holds.

        Yields:
            Events in the order of :mod:`adacache_runtime.events`: images and prompts that are encoded, each call, that
            all calls are over (with latents and trace), and the frames of each video as they are decoded. A bundle
            without a decoder gives no frames.

        Raises:
            InputError: the memory that is free is too small; nothing has run then.
            NonFiniteError: NaN or infinity in the latents; names the call and the stage.
            BundleError: a file of the bundle was changed after the bundle was opened.
        """
        model = self._model
        denoised = yield from self._denoised()
        yield denoised
        if model.bundle.manifest.latent.decoder == "none":
            return
        count, done = self.video.frames, 0
        for prompt, latents in enumerate(denoised.latents):
            for frames in stream(model.bundle, model.backend, latents, count, self.request.tile):
                done += len(frames)
                yield Decoded(prompt, frames, done, count * len(denoised.latents))

    def denoise(self) -> Generator[Event, None, None]:
        """Run the generation without decoding: the events of :meth:`events` up to :class:`Denoised`."""
        yield (yield from self._denoised())

    def _denoised(self) -> Generator[ImagesEncoded | TextEncoded | Called, None, Denoised]:
        self.check_free()
        bundle = self._model.bundle
        bundle.check(bundle.manifest.weights)  # its pages may be mapped, and be read in each call
        done: list[Denoised] = []
        for number in range(len(self.checked.loops)):
            done.append((yield from self._run(number, done[-1].latents if done else None)))
        bundle.check(bundle.manifest.weights)
        return _joined(done, self._model.bundle.manifest.latent.continued) if len(done) > 1 else done[0]

    def begin(self) -> Begun:
        """Encode and allocate the first loop, for who drives its calls in a way of their own.

        Raises:
            InputError: the memory that is free is too small; nothing has run then.
        """
        self.check_free()
        loop = self.checked.loops[0]
        return self._allocate(loop, self._latents(loop, None), self._captions(loop), self._of_image(loop))

    def _run(
        self, number: int, before: Floats | None
    ) -> Generator[ImagesEncoded | TextEncoded | Called, None, Denoised]:
        """Run one loop after one with latents ``before``; its buffers live as long as this generator."""
        loop = self.checked.loops[number]
        latents, of_image = self._latents(loop, before), self._of_image(loop)
        if loop.settled.encoded:
            yield ImagesEncoded(len(loop.settled.encoded))
        captions = self._captions(loop)
        yield TextEncoded()
        begun = self._allocate(loop, latents, captions, of_image)
        del latents, captions, of_image
        kept, records = [], []

        def keep(_call: int, latents: Latents) -> None:
            if loop.request.keep_calls:
                kept.append(latents.read())

        earlier = sum(len(loop.settled.updates) for loop in self.checked.loops[:number])
        for record in begun.denoiser.records(keep):
            records.append(replace(record, call=earlier + record.call))
            yield Called(records[-1], self.calls)
        contexts: int | None = getattr(self._model.backend, "contexts", None)  # only TensorRT has any
        trace = Trace(tuple(records), loop.sizes, loop.settled.granularity, contexts)
        calls = np.stack(kept) if loop.request.keep_calls else None
        return Denoised(begun.denoiser.latents.read(), trace, calls)

    def _captions(self, loop: Loop) -> Captions:
        model = self._model
        return branches(model.bundle, model.text_backend, loop.text, model.cache, loop.settled.branches)

    def _latents(self, loop: Loop, before: Floats | None) -> Floats:
        """Draw the noise (prompts, channels, frames, height, width), and put what is given in its place."""
        bundle, backend = self._model.bundle, self._model.backend
        request, settled = loop.request, loop.settled
        if request.latents is None:
            noise = initial_noise(request.seed, settled.latent_shape)
        else:
            noise = np.ascontiguousarray(request.latents, np.float32)
        if settled.given is not None:
            draw = drawn(request.seed)
            rule = bundle.manifest.latent.resize
            pixels = (resize(frames, settled.height, settled.width, rule) for frames in self.checked.given)
            references = [[encode(bundle, backend, one, draw, request.tile) for one in pixels]] * len(noise)
        elif before is not None:
            references = [[clip] for clip in before]
        else:
            return noise
        align, placements = alignment(bundle.manifest.latent), settled.placements
        return np.stack([place(one, given, placements, align) for one, given in zip(noise, references, strict=True)])

    def _of_image(self, loop: Loop) -> dict[str, Floats]:
        """Return what a model takes of the image that the video starts from, by the names of its inputs.

        That is the encoded video beside the latents, and the states that it attends to, if it takes them.
        """
        bundle, backend, request, settled = self._model.bundle, self._model.backend, loop.request, loop.settled
        manifest, made = bundle.manifest, {}
        if request.video_condition is not None:
            made[VIDEO_CONDITION] = request.video_condition[None]
        elif manifest.conditioning == "encoded-video":
            pixels = resize(self.checked.given[0], settled.height, settled.width, manifest.latent.resize)
            made[VIDEO_CONDITION] = video_condition(bundle, backend, pixels, settled.frames, request.tile)
        if request.image_states is not None:
            made[IMAGE_STATES] = request.image_states[None]
        elif manifest.image is not None:
            square = square_of(manifest.image, request, self.checked.given[0])
            made[IMAGE_STATES] = image_states(manifest.image, backend, square)
        return made

    def _allocate(self, loop: Loop, latents: Floats, captions: Captions, of_image: Mapping[str, Floats]) -> Begun:
        """Bind the engines to buffers, and write what stays the same in all calls."""
        model, settled = self._model, loop.settled
        manifest, device = model.bundle.manifest, model.backend.device
        assembly = assemble(manifest, model.engines, device, loop.request, settled, loop.sizes)
        assembly.latents.begin(latents)
        tensors, count = assembly.stages.tensors, assembly.stages.branches
        dtype = condition_dtype(manifest)

        def rounded(values: Floats) -> Floats:
            return values.astype(dtype).astype(np.float32)

        conditions: dict[str, NDArray[Any]] = {
            "captions": captions.embeddings,
            "text_mask": captions.mask,
            "fps": rounded(np.tile(settled.fps, count)),
            "height": rounded(np.array([settled.height], np.float32)),
            "width": rounded(np.array([settled.width], np.float32)),
            **of_image,
        }
        if X_MASK in tensors:  # all frames are generated, unless a mask says otherwise at each call
            conditions[X_MASK] = np.ones(tensors[X_MASK].shape, np.bool_)
        for name, value in conditions.items():
            if name in tensors:
                tensors[name].write(value.astype(tensors[name].dtype))
        request = loop.request
        denoiser = Denoiser(assembly, settled.segments, settled.updates, request.policy, request.scope, rounded)
        return Begun(denoiser, settled, loop.sizes)


def _joined(loops: Sequence[Denoised], continued: int) -> Denoised:
    """Join clips that continue one another: all but the first lose the ``continued`` latent frames they began with."""
    first, *others = loops
    latents = np.concatenate([first.latents, *(loop.latents[:, :, continued:] for loop in others)], axis=2)
    records = tuple(record for loop in loops for record in loop.trace.calls)
    contexts = [loop.trace.contexts for loop in loops if loop.trace.contexts is not None]
    trace = Trace(records, first.trace.sizes, first.trace.granularity, max(contexts, default=None))
    calls = [loop.calls for loop in loops if loop.calls is not None]
    return Denoised(latents, trace, np.concatenate(calls) if calls else None)
