"""Videos of several clips, each of which begins with the end of the one before.

Source: hpcaitech/Open-Sora v1.2, ``scripts/inference.py``: 5 latent frames of condition, which are 17 of the video.
"""

from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.errors import InputError
from adacache_runtime.conditioning.references import Placement, alignment


def continuation(space: LatentSpace) -> Placement:
    """Return the place of the last latent frames of a clip in the one that continues it, which keeps them.

    They are taken as they are; the original takes them through pixels, which are encoded again.
    """
    return Placement(reference_start=-space.continued, length=space.continued)


def check_continues(space: LatentSpace, frames: int) -> None:
    """Check that clips of ``frames`` latent frames can continue one another.

    Raises:
        InputError: they are too short, or do not end with a whole group; or the first latent frame of a clip stands for
            fewer frames than the last.
    """
    rule, continued = space.frames, space.continued
    if rule.first_alone == "always":
        raise InputError(
            "clips of this model cannot continue one another, because the first latent frame of each stands for one "
            f"frame, and the last for {rule.stretch}; make one clip, or begin the next with --image"
        )
    if frames <= continued or frames % alignment(space):
        chunk, what = rule.chunk_frames, "more of them"
        if alignment(space) > 1 and chunk is not None:
            what = f"a multiple of {chunk} frames, {rule.frames_of(continued) + chunk} or more"
        raise InputError(
            f"clips of {frames} latent frames cannot continue one another, each beginning with {continued} of the one "
            f"before; choose {what}"
        )


def joined_frames(space: LatentSpace, latent_frames: int, frames: int, clips: int) -> tuple[int, int]:
    """Return the latent frames and the frames of a video of several clips, each of ``latent_frames`` and ``frames``."""
    latents_again, frames_again = space.continued, space.frames.frames_of(space.continued)
    more = clips - 1
    return latent_frames + more * (latent_frames - latents_again), frames + more * (frames - frames_again)
