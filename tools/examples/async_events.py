"""Make a video in an asyncio program: a thread runs the generation, and a cancelled task cancels it between two calls.

python -m tools.examples.async_events out/mine.adacache "a red circle moves left fast" out/async.mp4
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import numpy as np

from adacache_runtime import Pipeline
from adacache_runtime.events import Called, Decoded, Event
from adacache_runtime.generation import Prepared
from adacache_runtime.media.video import write_video


async def events(prepared: Prepared) -> AsyncGenerator[Event, None]:
    """Yield the events of a generation while other tasks go on."""
    steps, loop = prepared.events(), asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        try:
            while (event := await loop.run_in_executor(thread, next, steps, None)) is not None:
                yield event
        finally:
            thread.submit(steps.close)  # in the thread, so after the call that is under way


async def make(pipeline: Pipeline, prompt: str, path: Path) -> None:
    """Make one video, and show how far it is."""
    prepared = pipeline.prepare(pipeline.request(prompt, policy="adacache-fast"))
    frames = []
    async with aclosing(events(prepared)) as told:
        async for event in told:
            if isinstance(event, Called):
                print(f"call {event.record.call} of {event.total}")
            elif isinstance(event, Decoded):
                frames.append(event.frames)
    write_video(path, np.concatenate(frames), prepared.video.fps[0])


def main() -> None:
    bundle, prompt, path = sys.argv[1:]
    with Pipeline.open(bundle) as pipeline:
        asyncio.run(make(pipeline, prompt, Path(path)))


if __name__ == "__main__":
    main()
