"""How a video is cut into the chunks that a VAE codes one by one."""

from collections.abc import Iterator
from dataclasses import dataclass

from adacache_engines.bundle.latent_space import ChunkRule, LatentSpace
from adacache_engines.errors import InputError


@dataclass(frozen=True)
class Chunk:
    """A run of latent frames that a VAE decodes in one call, or of frames that it encodes in one call.

    Attributes:
        start, stop: first latent frame (or frame) of the run, and the one after its last.
        made: number of frames (or latent frames) that the VAE makes of it.
        kept: slice of those that belong to the video.
    """

    start: int
    stop: int
    made: int
    kept: slice

    @property
    def count(self) -> int:
        """Number of frames (or latent frames) that are kept."""
        return len(range(self.made)[self.kept])


def decoded_chunks(space: LatentSpace, latent_frames: int, frames: int | None = None) -> list[Chunk]:
    """Cut a video's latent frames into the chunks that are decoded.

    Args:
        space: latent space of the bundle.
        latent_frames: number of latent frames of the video.
        frames: number of frames of the video; None = as many as its latent frames can hold.

    Raises:
        InputError: a video of ``frames`` frames has another number of latent frames.
    """
    if frames is not None and space.latent_frames(frames) != latent_frames:
        raise InputError(
            f"{latent_frames} latent frames are no video of {frames} frames, which has {space.latent_frames(frames)}"
        )
    return list(_decoded(space.chunks, latent_frames, frames))


def _decoded(rule: ChunkRule, latent_frames: int, frames: int | None) -> Iterator[Chunk]:
    given = 0
    for start, stop in _cuts(latent_frames, rule.latents, rule.shared, rule.first_alone):
        made = 1 if rule.first_alone and not start else rule.decoded(stop - start)
        repeated = rule.decoded(rule.shared) if start else 0
        count = min(rule.frames, made) - repeated
        if frames is not None:
            count = min(count, frames - given)
        first = made - count if rule.spare == "first" else repeated
        yield Chunk(start, stop, made, slice(first, first + count))
        given += count


def encoded_chunks(rule: ChunkRule, frames: int) -> list[Chunk]:
    """Cut a video of ``frames`` frames into the chunks that are encoded.

    Raises:
        InputError: the first frame is a chunk by itself, and the others are not whole latent frames.
    """
    if rule.first_alone and (rest := (frames - 1) % rule.stretch):
        raise InputError(
            f"a video of {frames} frames cannot be encoded: expected one frame, and then a multiple of {rule.stretch}; "
            f"choose {frames - rest} or {frames - rest + rule.stretch} frames"
        )
    cuts = _cuts(frames, rule.frames, rule.decoded(rule.shared), rule.first_alone)
    made = [(start, stop, rule.encoded(stop - start)) for start, stop in cuts]
    return [Chunk(start, stop, some, slice(rule.shared if start else 0, some)) for start, stop, some in made]


def video_frames(space: LatentSpace, latent_frames: int, frames: int) -> int:
    """Return the number of frames of the video that latents become.

    It is ``frames``, unless the latents were given and are of another length; then it is as many as they can hold.
    """
    if not space.decoding:
        return latent_frames
    fitting = frames if space.latent_frames(frames) == latent_frames else None
    return sum(chunk.count for chunk in decoded_chunks(space, latent_frames, fitting))


def _cuts(length: int, chunk: int, shared: int, first_alone: bool) -> Iterator[tuple[int, int]]:
    """Yield where chunks begin and end; each begins with the ``shared`` end of the one before."""
    start = 0
    if first_alone and length:
        yield 0, 1
        if length == 1:
            return
        start = 1
    while True:
        yield start, min(start + chunk, length)
        if start + chunk >= length:
            return
        start += chunk - shared
