"""A bundle on Ray Serve, for many machines: a replica for each device, and jobs, so that no proxy waits for a video.

    serve run tools.examples.ray_serve:app bundle=/models/boats.adacache replicas=2 gpus=1

``POST /v1/videos`` answers at once with the id of a job; ``GET /v1/videos/ID`` has its status and calls,
``GET /v1/videos/ID/content`` the video, and ``DELETE /v1/videos/ID`` cancels it between two calls of the denoiser.
Ray's router is the queue. Jobs live in memory: adacache-serve's survive a restart, these don't.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.exceptions import RequestCancelledError

from adacache_engines.bundle.files import open_bundle
from adacache_runtime.commands.options import opening_from_texts
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.trace import CallRecord, entry
from adacache_serve.device.video_file import film, suffix
from adacache_serve.orders.check import FieldError, check, check_servable, with_seed
from adacache_serve.orders.schema import ENDED, CreateVideo, Status
from adacache_serve.settings import Settings

NOT_HERE = {"model", "image", "priority", "deadline_seconds"}
KEPT = 1000  # jobs, of which those that have ended make room for new ones
SETTINGS = Settings(Path())
api = FastAPI(title="adacache on Ray Serve")


class Job(BaseModel):
    """As clients see it; ``calls`` as :func:`adacache_runtime.trace.entry` has them."""

    id: str
    request: CreateVideo
    status: Status = "queued"
    replica: str | None = None
    calls: list[dict[str, Any]] = []
    error: str | None = None
    content: bytes | None = Field(None, exclude=True)
    made_by: Any = Field(None, exclude=True)  # the replica's stream, and the task that reads it


# above the classes: Ray Serve pickles these where they are decorated
async def _follow(job: Job, stream: Any) -> None:
    """Keeps what a replica says of a job, until the job has ended."""
    try:
        async for step in stream:
            if job.status in ENDED:
                return  # it was cancelled
            if isinstance(step, str):
                job.replica, job.status = step, "in_progress"
            elif isinstance(step, dict):
                job.calls.append(step)
            else:
                job.content, job.status = step, "completed"
    except (asyncio.CancelledError, RequestCancelledError):
        job.status = "cancelled"
    except Exception as error:  # of the engine, or the replica's death
        job.status, job.error = "failed", str(getattr(error, "cause", None) or error)


@serve.deployment(max_ongoing_requests=1)
class Films:
    """Makes one video at a time in each replica."""

    def __init__(self, bundle: str, open_pipeline: Callable[[str], Pipeline]) -> None:
        self._pipeline, self._thread = open_pipeline(bundle), ThreadPoolExecutor(1)

    async def make(self, order: CreateVideo) -> AsyncIterator[str | dict[str, Any] | bytes]:
        """The replica's name, each call, and the video's file."""
        yield serve.get_replica_context().replica_id.unique_id
        steps = self._steps(order)
        try:
            while step := await asyncio.get_running_loop().run_in_executor(self._thread, next, steps, None):
                yield step
        finally:
            self._thread.submit(steps.close)  # in the thread, so after the call that is under way

    def _steps(self, order: CreateVideo) -> Generator[dict[str, Any] | bytes, None, None]:
        prepared = self._pipeline.prepare(check(order, self._pipeline.bundle, SETTINGS))
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, f"video{suffix(prepared.video.frames)}")
            with closing(film(prepared, output)) as steps:
                yield from (entry(step) for step in steps if isinstance(step, CallRecord))
            yield output.read_bytes()


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Videos:
    """Answers HTTP, and holds the jobs."""

    def __init__(self, bundle: str, films: Any) -> None:
        self._bundle, self._films = open_bundle(bundle), films.options(stream=True)
        check_servable(self._bundle.folder, self._bundle.manifest)
        self._jobs: dict[str, Job] = {}

    @api.post("/v1/videos", status_code=202)
    async def create(self, order: CreateVideo) -> Job:
        """Begins a job."""
        if given := NOT_HERE & order.model_fields_set:
            raise HTTPException(422, {"field": min(given), "detail": "is not taken here; leave it out"})
        try:
            check(order, self._bundle, SETTINGS)
        except FieldError as error:
            raise HTTPException(422, {"field": error.field, "detail": str(error)}) from error
        if len(self._jobs) >= KEPT:
            ended = next((name for name, other in self._jobs.items() if other.status in ENDED), None)
            if ended is None:
                raise HTTPException(429, f"{KEPT} jobs wait already", {"Retry-After": "60"})
            del self._jobs[ended]
        job = Job(id=f"video_{uuid4().hex}", request=with_seed(order))
        self._jobs[job.id] = job
        stream = self._films.make.remote(job.request)
        job.made_by = (stream, asyncio.create_task(_follow(job, stream)))
        return job

    @api.get("/v1/videos/{name}")
    async def get(self, name: str) -> Job:
        """What became of a job."""
        if name not in self._jobs:
            raise HTTPException(404, "there is no video of this id")
        return self._jobs[name]

    @api.get("/v1/videos/{name}/content")
    async def content(self, name: str) -> Response:
        """The video."""
        job = await self.get(name)
        if job.content is None:
            raise HTTPException(409, f"this video is {job.status.replace('_', ' ')}, so it has no content")
        kind = "image/png" if job.content.startswith(b"\x89PNG") else "video/mp4"
        return Response(job.content, media_type=kind)

    @api.delete("/v1/videos/{name}")
    async def cancel(self, name: str) -> Job:
        """Ends a job that has not ended."""
        job = await self.get(name)
        if job.status not in ENDED:
            job.status = "cancelled"
            job.made_by[0].cancel()
        return job


def application(
    bundle: str, replicas: int, gpus: float = 0, open_pipeline: Callable[[str], Pipeline] = Pipeline.open
) -> serve.Application:
    """
    Args:
        bundle: folder that every machine has.
        replicas: that make videos.
        gpus: of each.
        open_pipeline: opens the bundle in a replica.
    """
    films: Any = Films.options(num_replicas=replicas, ray_actor_options={"num_cpus": 1, "num_gpus": gpus})  # type: ignore[attr-defined]
    return Videos.bind(bundle, films.bind(bundle, open_pipeline))  # type: ignore[attr-defined,no-any-return]


def app(args: dict[str, str]) -> serve.Application:
    """Return the application for ``serve run``; the others are adacache-run's options: ``weight_budget=4000``."""
    rest = dict(args)
    bundle, replicas, gpus = rest.pop("bundle"), int(rest.pop("replicas", 1)), float(rest.pop("gpus", 0))
    return application(bundle, replicas, gpus, partial(Pipeline.open, **opening_from_texts(rest)))
