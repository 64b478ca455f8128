"""Videos of several clips, each of which begins with the end of the one before.

Source: hpcaitech/Open-Sora v1.2, ``scripts/inference.py``: 5 latent frames of condition, which are 17 of the video.
"""

from adacache_engines.bundle.manifest import LatentSpace
from adacache_engines.errors import InputError
from adacache_runtime.conditioning.references import Placement, alignment
from adacache_runtime.samplers.rflow import CHUNK_FRAMES, CHUNK_LATENTS

CONTINUED = CHUNK_LATENTS  # latent frames of a clip that the next one begins with

# A clip begins with the last latent frames of the one before, and keeps them. They are taken as they are; the original
# takes them through pixels, which are encoded again.
CONTINUATION = Placement(reference_start=-CONTINUED, length=CONTINUED)


def check_continues(space: LatentSpace, frames: int) -> None:
    """Check that clips of ``frames`` latent frames can continue one another.

    Raises:
        InputError: they are too short, or do not end with a whole group.
    """
    align = alignment(space)
    if frames <= CONTINUED or frames % align:
        what = f"a multiple of {CHUNK_FRAMES} frames, {2 * CHUNK_FRAMES} or more" if align > 1 else "more of them"
        raise InputError(
            f"clips of {frames} latent frames cannot continue one another, each beginning with {CONTINUED} of the one "
            f"before; choose {what}"
        )


def joined_frames(space: LatentSpace, latent_frames: int, frames: int, clips: int) -> tuple[int, int]:
    """Return the latent frames and the frames of a video of several clips, each of ``latent_frames`` and ``frames``."""
    again = CHUNK_FRAMES if alignment(space) > 1 else CONTINUED
    return latent_frames + (clips - 1) * (latent_frames - CONTINUED), frames + (clips - 1) * (frames - again)
