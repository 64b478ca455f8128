"""Advice for a run that does not fit into memory: the single changes with which it would."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from adacache_engines.errors import EngineError, InputError, PolicyError
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.memory.estimate import KINDS, MemoryEstimate, megabytes
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled

Measure = Callable[[Request], MemoryEstimate]

EIGHTHS = range(7, 0, -1)  # of what was asked for: the frames and sizes that are tried
PIXELS = 16  # that a smaller height and width are multiples of
TILES = (512, 256)  # pixels


def check_fit(request: Request, settled: Settled, plan: MemoryEstimate, free: int | None, measure: Measure) -> None:
    """Check that a generation fits into the memory that is free.

    Args:
        request: the request.
        settled: the same with every default filled in.
        plan: estimate of the request's memory.
        free: number of bytes that are free beside the weights of the engines; None = unknown, and everything fits.
        measure: estimates another request; raises for one that is not possible.

    Raises:
        InputError: it does not fit; has the numbers, and each single change that would make it fit.
    """
    if free is None or plan.beside_weights <= free:
        return
    parts = [(text, getattr(plan, kind)) for kind, text in KINDS.items() if kind != "weights"]
    numbers = ", ".join(f"{text} {megabytes(nbytes)} MB" for text, nbytes in parts if nbytes)
    options = [
        f"{text} ({megabytes(less.beside_weights)} MB)" for text, less in _options(request, settled, free, measure)
    ]
    raise InputError(
        f"this run does not fit into memory: it takes {megabytes(plan.beside_weights)} MB beside the weights of the "
        f"engines, and {megabytes(free)} MB are free ({numbers}); "
        + ("it would fit with " + ", or ".join(options) if options else "no single change of it would fit")
    )


def _options(request: Request, settled: Settled, free: int, measure: Measure) -> Iterator[tuple[str, MemoryEstimate]]:
    """Yield the single changes that make it fit, each with the memory that it takes then."""

    def fitting(changed: Request) -> MemoryEstimate | None:
        try:
            plan = measure(changed)
        except (InputError, EngineError, PolicyError):  # outside of what the model, the bundle or its plans allow
            return None
        return plan if plan.beside_weights <= free else None

    def first(requests: Iterator[tuple[str, Request]]) -> Iterator[tuple[str, MemoryEstimate]]:
        for text, changed in requests:
            plan = fitting(changed)
            if plan is not None:
                yield text, plan
                return

    yield from first(_by_tiles(request))
    if settled.granularity not in ("model", "stack"):
        yield from first(iter([("--granularity stack", replace(request, granularity="stack"))]))
    yield from first(_fewer_prompts(request, settled))
    if request.latents is None:
        yield from first(_fewer_frames(request, settled))
        yield from first(_smaller(request, settled))
    if request.policy.needs.residuals:
        yield from first(iter([("--policy never", replace(request, policy=NeverReuse()))]))


def _by_tiles(request: Request) -> Iterator[tuple[str, Request]]:
    for side in _smaller_tiles(request.tile):
        yield f"--tile {side}", replace(request, tile=side)


def _smaller_tiles(tile: int | None) -> list[int]:
    return [side for side in TILES if tile is None or side < tile]


def _fewer_prompts(request: Request, settled: Settled) -> Iterator[tuple[str, Request]]:
    for count in range(settled.samples - 1, 0, -1):
        captions, fps, latents = request.captions, request.fps, request.latents
        if captions is not None:
            captions = captions.first(count)
        negatives = request.negative_prompts
        changed = replace(
            request,
            prompts=request.prompts[:count],
            negative_prompts=negatives[:count] if len(negatives) > 1 else negatives,
            captions=captions,
            fps=fps[:count] if fps is not None and len(fps) > 1 else fps,
            latents=None if latents is None else latents[:count],
            mask=None if request.mask is None else request.mask[:count],
            noise=None if request.noise is None else request.noise[:, :count],
        )
        yield f"{count} {'prompt' if count == 1 else 'prompts'} at a time", changed


def _fewer_frames(request: Request, settled: Settled) -> Iterator[tuple[str, Request]]:
    for frames in dict.fromkeys(settled.frames * eighths // 8 for eighths in EIGHTHS):
        if frames:
            yield f"--frames {frames}", replace(request, frames=frames)


def _smaller(request: Request, settled: Settled) -> Iterator[tuple[str, Request]]:
    for eighths in EIGHTHS:
        height, width = (size * eighths // 8 // PIXELS * PIXELS for size in (settled.height, settled.width))
        if height and width:
            yield f"--size {width}x{height}", replace(request, height=height, width=width)
