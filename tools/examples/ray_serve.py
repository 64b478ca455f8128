"""A bundle on Ray Serve, for many machines: a replica for each device, and jobs, so that no proxy waits for a video.

    serve run tools.examples.ray_serve:app bundle=/models/boats.adacache replicas=2 gpus=1

``POST /v1/videos`` answers at once with the id of a job. ``GET /v1/videos/ID`` returns its status and calls,
``GET /v1/videos/ID/content`` returns the video, and ``DELETE /v1/videos/ID`` cancels the job between two calls.
Ray's router is the queue. Jobs live in memory; those of adacache-serve survive a restart, these do not.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.exceptions import RequestCancelledError

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_runtime.commands.options import opening_from_texts
from adacache_runtime.events import Called
from adacache_runtime.media.frames import Frames
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.trace import entry
from adacache_serve.device.video_file import MEDIA_TYPES, suffix, write_events
from adacache_serve.orders.check import FieldError, check, check_servable, request_of, with_seed
from adacache_serve.orders.images import image_of_order
from adacache_serve.orders.schema import ENDED, CreateVideo, Status
from adacache_serve.settings import Settings

NOT_SUPPORTED = {"model", "priority", "deadline_seconds"}
DECODERS = 2  # processes that decode images at once
KEPT = 1000  # jobs that are kept; those that have ended make room for new ones
MOST_NAMED = 100  # characters of a client's that an answer repeats
SETTINGS = Settings(Path())
api = FastAPI(title="adacache on Ray Serve")


class Job(BaseModel):
    """A job as clients see it; ``calls`` are records as :func:`adacache_runtime.trace.entry` writes them."""

    id: str
    request: CreateVideo
    status: Status = "queued"
    replica: str | None = None
    calls: list[dict[str, Any]] = []
    error: str | None = None
    content: bytes | None = Field(None, exclude=True)
    media_type: str = Field("", exclude=True)
    stream: Any = Field(None, exclude=True)  # what the replica sends
    reader: Any = Field(None, exclude=True)  # the task that reads it


# functions, above the classes: Ray Serve pickles these where they are decorated
@api.exception_handler(RequestValidationError)
def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer an order that is none, without repeating what JSON cannot hold, such as NaN."""
    wrong = error.errors()[0]
    field = ".".join(map(str, wrong["loc"][1:]))[:MOST_NAMED] or "body"
    return JSONResponse({"detail": {"field": ascii(field)[1:-1], "detail": ascii(wrong["msg"])[1:-1]}}, 422)


def _checked_image(order: CreateVideo, bundle: Bundle) -> Frames | None:
    """Check an order; return its image at the size of its video, (1, height, width, 3) RGB; None = it has none."""
    settled = check(order, bundle, SETTINGS, image=order.image is not None)
    return None if order.image is None else image_of_order(order.image, settled, bundle)


async def _follow(job: Job) -> None:
    """Record what a replica sends about a job, until the job has ended."""
    try:
        async for sent in job.stream:
            if job.status in ENDED:
                return  # the job was cancelled
            if isinstance(sent, str):
                job.replica, job.status = sent, "in_progress"
            elif isinstance(sent, dict):
                job.calls.append(sent)
            else:
                job.media_type, job.content = sent
                job.status = "completed"
    except (asyncio.CancelledError, RequestCancelledError):
        job.status = "cancelled"
    except Exception as error:  # the generation failed, or the replica died
        cause = getattr(error, "cause", None) or error
        job.status, job.error = "failed", (str(cause) or repr(cause)).encode(errors="backslashreplace").decode()


@serve.deployment(max_ongoing_requests=1)
class Replica:
    """A pipeline that makes one video at a time."""

    def __init__(self, bundle: str, open_pipeline: Callable[[str], Pipeline]) -> None:
        self._pipeline, self._thread = open_pipeline(bundle), ThreadPoolExecutor(1)

    async def make(
        self, order: CreateVideo, image: Frames | None
    ) -> AsyncIterator[str | dict[str, Any] | tuple[str, bytes]]:
        """Yield the replica's name, the record of each call, and the media type and content of the video."""
        yield serve.get_replica_context().replica_id.unique_id
        steps = self._steps(order, image)
        try:
            while step := await asyncio.get_running_loop().run_in_executor(self._thread, next, steps, None):
                yield step
        finally:
            self._thread.submit(steps.close)  # in the thread, so after the call that is under way

    def _steps(
        self, order: CreateVideo, image: Frames | None
    ) -> Generator[dict[str, Any] | tuple[str, bytes], None, None]:
        prepared = self._pipeline.prepare(request_of(order, self._pipeline.bundle, SETTINGS, image))
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, f"video{suffix(prepared.video.frames)}")
            with closing(write_events(prepared, output)) as events:
                yield from (entry(event.record) for event in events if isinstance(event, Called))
            yield MEDIA_TYPES[output.suffix], output.read_bytes()


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Videos:
    """The HTTP API, which holds the jobs."""

    def __init__(self, bundle: str, replicas: Any) -> None:
        self._bundle, self._replicas = open_bundle(bundle), replicas.options(stream=True)
        check_servable(self._bundle.folder, self._bundle.manifest)
        self._jobs: dict[str, Job] = {}
        self._decoding = asyncio.Semaphore(DECODERS)

    @api.post("/v1/videos", status_code=202)
    async def create(self, order: CreateVideo) -> Job:
        """Create a job."""
        if given := NOT_SUPPORTED & order.model_fields_set:
            raise HTTPException(422, {"field": min(given), "detail": "this field is not supported here; leave it out"})
        try:
            async with self._decoding if order.image else nullcontext():
                image = await asyncio.to_thread(_checked_image, order, self._bundle)
        except FieldError as error:
            raise HTTPException(422, {"field": error.field, "detail": str(error)}) from error
        if len(self._jobs) >= KEPT:
            ended = next((name for name, other in self._jobs.items() if other.status in ENDED), None)
            if ended is None:
                raise HTTPException(429, f"{KEPT} jobs are waiting already; try again later", {"Retry-After": "60"})
            del self._jobs[ended]
        order = with_seed(order).model_copy(update={"image": None})
        job = Job(id=f"video_{uuid4().hex}", request=order, stream=self._replicas.make.remote(order, image))
        job.reader = asyncio.create_task(_follow(job))
        self._jobs[job.id] = job
        return job

    @api.get("/v1/videos/{name}")
    async def get(self, name: str) -> Job:
        """Return a job."""
        if name not in self._jobs:
            raise HTTPException(404, f"there is no video {name[:MOST_NAMED]!r}")
        return self._jobs[name]

    @api.get("/v1/videos/{name}/content")
    async def content(self, name: str) -> Response:
        """Return the video of a job."""
        job = await self.get(name)
        if job.content is None:
            raise HTTPException(409, f"this video is {job.status.replace('_', ' ')}, so it has no content")
        return Response(job.content, media_type=job.media_type)

    @api.delete("/v1/videos/{name}")
    async def cancel(self, name: str) -> Job:
        """Cancel a job that has not ended."""
        job = await self.get(name)
        if job.status not in ENDED:
            job.status = "cancelled"
            job.stream.cancel()
        return job


def application(
    bundle: str, replicas: int, gpus: float = 0, open_pipeline: Callable[[str], Pipeline] = Pipeline.open
) -> serve.Application:
    """Return the application.

    Args:
        bundle: folder of the bundle, which every machine has.
        replicas: number of replicas that make videos.
        gpus: number of GPUs of each replica.
        open_pipeline: opens the bundle in a replica.
    """
    makers: Any = Replica.options(num_replicas=replicas, ray_actor_options={"num_cpus": 1, "num_gpus": gpus})  # type: ignore[attr-defined]
    return Videos.bind(bundle, makers.bind(bundle, open_pipeline))  # type: ignore[attr-defined,no-any-return]


def app(args: dict[str, str]) -> serve.Application:
    """Return the application for ``serve run``; other arguments are adacache-run's options, such as ``threads=4``."""
    rest = dict(args)
    bundle, replicas, gpus = rest.pop("bundle"), int(rest.pop("replicas", 1)), float(rest.pop("gpus", 0))
    return application(bundle, replicas, gpus, partial(Pipeline.open, **opening_from_texts(rest)))
