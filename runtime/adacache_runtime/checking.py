"""A request checked against a bundle once: settled, tokenised, its images read; no engine is needed for it."""

from dataclasses import dataclass, replace
from typing import get_args

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Score, TextRule
from adacache_engines.bundle.shape_profiles import check_profiles
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.conditioning.clips import check_continues, joined_frames
from adacache_runtime.conditioning.given_frames import check_images, read_given
from adacache_runtime.conditioning.masks import check_conditioned
from adacache_runtime.conditioning.prompt_loops import prompts_by_loop
from adacache_runtime.media.frames import Frames
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled, settle
from adacache_runtime.text.cleaning import with_scores
from adacache_runtime.text.prompts import Text, read_text
from adacache_runtime.vae.chunks import video_frames

MAX_LOOPS = 1000  # of one video; each is a clip that is settled and tokenised before the first one is made
MAX_SCORE = 1000  # of beauty or motion, which models were trained to read in text; theirs are below 100


@dataclass(frozen=True)
class VideoShape:
    """Size and length of the videos of a generation.

    Attributes:
        width, height: pixels.
        frames: number of frames of each video; 1 = an image.
        fps: frames per second, one for each prompt.
    """

    width: int
    height: int
    frames: int
    fps: tuple[float, ...]


@dataclass(frozen=True)
class Loop:
    """A clip of a video that consists of clips that continue one another; most videos have one.

    Attributes:
        request: the request for this clip alone.
        settled: the same with every default filled in.
        text: its prompts, tokenised.
        sizes: sizes of all dynamic axes.
    """

    request: Request
    settled: Settled
    text: Text
    sizes: dict[str, int]


@dataclass(frozen=True)
class Checked:
    """A request that fits a bundle: settled and tokenised once, its images read; no engine was needed for it.

    Attributes:
        request: the request.
        loops: the clips that make the video, in order.
        given: the end of the clip and the images that the first loop contains or starts from, as they were read.
        video: size and length of the videos.
        calls: number of calls of the denoiser, those of all loops together.
        notes: sentences for the user, such as an image that had to move to another frame.
    """

    request: Request
    loops: tuple[Loop, ...]
    given: tuple[Frames, ...]
    video: VideoShape
    calls: int
    notes: tuple[str, ...]

    @property
    def settled(self) -> Settled:
        """The first loop with every default filled in."""
        return self.loops[0].settled


def check(bundle: Bundle, request: Request) -> Checked:
    """Check a request against a bundle: fill in its defaults, tokenise its prompts, read its images.

    Nothing is allocated, and no engine is loaded.

    Raises:
        OutOfRangeError: a number or size is outside what the model or the bundle allows.
        InputError: the request does not fit the bundle, or the policy needs a probe that it does not have.
        PolicyError: the policy cannot decide at this granularity.
    """
    space = bundle.manifest.latent
    if not 1 <= request.loops <= MAX_LOOPS:
        raise OutOfRangeError(f"{request.loops} loops are not possible; choose 1 to {MAX_LOOPS}")
    check_images(bundle.manifest, request)
    loops = [_loop(bundle, request, 0, None)]
    first = loops[0].settled
    if request.loops > 1:
        check_conditioned(bundle.manifest)
        check_continues(space, first.latent_shape[2])
    loops += [_loop(bundle, request, number, first.latent_shape) for number in range(1, request.loops)]
    _, _, latent_frames, height, width = first.latent_shape
    frames = video_frames(space, *joined_frames(space, latent_frames, first.frames, request.loops))
    factor = space.spatial_factor
    return Checked(
        request=request,
        loops=tuple(loops),
        given=read_given(request, space),
        video=VideoShape(width * factor, height * factor, frames, tuple(first.fps.tolist())),
        calls=sum(len(loop.settled.updates) for loop in loops),
        notes=() if first.given is None else first.given.notes,
    )


def _loop(bundle: Bundle, request: Request, number: int, continues: tuple[int, ...] | None) -> Loop:
    """Check one clip of a video.

    Args:
        bundle: the opened bundle.
        request: the request for the whole video.
        number: number of the loop, from 0.
        continues: shape of the latents of the clip before; None = there is none.
    """
    prompts = loop_prompts(bundle.manifest.text, request, number)
    own = replace(request, prompts=prompts, seed=request.seed + number, loops=1)
    if continues:  # all that is given to it is the end of the clip before
        own = replace(own, images=(), image_at=(), clip=None, latents=None, mask=None, noise=None)
    settled = settle(bundle, own, continues)
    text = read_text(bundle, own, settled.branches)
    sizes = {**settled.sizes, "text": text.length}
    check_profiles(bundle.manifest, sizes)
    return Loop(own, settled, text, sizes)


def loop_prompts(rule: TextRule, request: Request, loop: int) -> tuple[str, ...]:
    """Return the prompts of one loop, with the scores that the model was trained to read."""
    scores = (request.aesthetic, request.motion, request.camera)
    for name, score in zip(get_args(Score), scores, strict=True):
        if score is not None and name not in rule.scores:
            known = ", ".join(rule.scores) or "no scores"
            raise InputError(f"{name} {score}: this model was not trained to read that score; it reads {known}")
        if isinstance(score, float | int) and not 0 <= score <= MAX_SCORE:  # NaN is not
            raise OutOfRangeError(f"{name} {score} is not possible; choose 0 to {MAX_SCORE}")
    return tuple(with_scores(prompts_by_loop(text, loop + 1)[loop], *scores) for text in request.prompts)
