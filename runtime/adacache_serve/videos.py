"""``/v1/videos`` and ``/v1/models``."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adacache_engines.manifest import Manifest
from adacache_serve.keys import ANONYMOUS, Client, client_of
from adacache_serve.live import numbers
from adacache_serve.orders import FieldError, policies
from adacache_serve.schema import (
    ENDED,
    CreateVideo,
    Failure,
    Model,
    ModelList,
    Policy,
    Problem,
    Status,
    TraceNumbers,
    Video,
    VideoList,
)
from adacache_serve.service import Service
from adacache_serve.store import Job
from adacache_serve.uploads import decode_picture, decoded_base64

POLL_SECONDS = 0.1  # between two looks at a running job; what waits for it holds neither a thread nor a lock
EVENTS = {"content": {"text/event-stream": {}}, "description": "server-sent events: status, and call for each call"}
CONTENT = {"content": {"video/mp4": {}, "image/png": {}}, "description": "the video"}
TYPES = {".mp4": "video/mp4", ".png": "image/png"}
NAME = re.compile(r"video_[0-9a-f]{32}")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document."""
    content = {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {status: {"model": Problem, "content": content} for status in statuses}


router = APIRouter(prefix="/v1", responses=problems(401, 503))


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def client(request: Request, authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> Client:
    """Who asks, by ``Authorization: Bearer KEY``.

    Raises:
        HTTPException: 401, the key is missing or nobody's.
    """
    clients: tuple[Client, ...] | None = request.app.state.clients
    if clients is None:
        return ANONYMOUS
    kind, _, key = (authorization or "").partition(" ")
    found = client_of(key, clients) if kind.lower() == "bearer" else None
    if found is None:
        raise HTTPException(401, "give your API key: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    return found


Asking = Annotated[Client, Depends(client)]
Serving = Annotated[Service, Depends(service_of)]


def owned(video_id: str, service: Serving, asking: Asking) -> Job:
    """The job of that name, if it is this client's.

    Raises:
        HTTPException: 404, there is none.
    """
    job = service.store.get(video_id) if NAME.fullmatch(video_id) else None
    if job is None or job.client != asking.name:
        raise HTTPException(404, f"there is no video {video_id!r}")
    return job


Owned = Annotated[Job, Depends(owned)]


@router.post("/videos", status_code=202, response_model=Video, responses=problems(409, 413, 422, 429))
def create_video(
    order: CreateVideo,
    service: Serving,
    asking: Asking,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> Video:
    """Stores a job and gives it. With an ``Idempotency-Key`` the same request gives the same job again."""
    picture = None
    if order.image is not None:
        try:
            picture = decode_picture(decoded_base64(order.image))
        except ValueError as error:
            raise FieldError("image", str(error)) from error
    job, new = service.submit(order, asking, picture, idempotency_key)
    response.headers["Location"] = f"/v1/videos/{job.id}"
    if not new:
        response.headers["Idempotent-Replayed"] = "true"
    return shown(job, service)


@router.get("/videos", response_model=VideoList, responses=problems(404, 422))
def list_videos(
    service: Serving,
    asking: Asking,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
    status: Status | None = None,
) -> VideoList:
    """The newest first."""
    number = owned(after, service, asking).number if after is not None else None
    found = service.store.newest(asking.name, limit + 1, number, status)
    page = found[:limit]
    more = len(found) > limit
    return VideoList(data=[shown(job, service) for job in page], has_more=more, last_id=page[-1].id if more else None)


@router.get("/videos/{video_id}", response_model=Video, responses=problems(404))
def get_video(job: Owned, service: Serving) -> Video:
    """Its status, progress, error and numbers."""
    return shown(job, service)


@router.delete("/videos/{video_id}", response_model=Video, responses=problems(404))
def delete_video(job: Owned, service: Serving) -> Video:
    """Cancels a job that has not ended, between two calls of the denoiser; deletes the content of one that has."""
    if not service.cancel(job.id) and (ended := service.store.get(job.id)):
        service.delete_content(ended)
    left = service.store.get(job.id)
    assert left is not None
    return shown(left, service)


@router.get(
    "/videos/{video_id}/content",
    response_class=Response,
    responses={
        200: CONTENT,
        206: CONTENT,
        307: {"description": "where the content is"},
        **problems(404, 409, 410, 416),
    },
)
def get_content(job: Owned, service: Serving) -> Response:
    """The video, whole or in ranges; or where it lies, if that is not this server."""
    if job.status != "completed":
        raise HTTPException(409, f"this video is {job.status.replace('_', ' ')}, so it has no content")
    path = service.results.path(job.content) if job.content else None
    if job.content is None or (path is not None and not path.exists()):
        raise HTTPException(410, "the content of this video was deleted")
    if path is None:
        return RedirectResponse(service.results.link(job.content) or "", 307)
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"Cache-Control": "private, immutable"})


@router.get("/videos/{video_id}/events", response_class=StreamingResponse, responses={200: EVENTS, **problems(404)})
def get_events(job: Owned, service: Serving, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """Server-sent events: ``status`` with the video, whenever it changes, and ``call`` for each call of the denoiser.
    The last is the status of a job that has ended. ``Last-Event-ID`` goes on after a call.
    """
    seen = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 9 else 0
    return StreamingResponse(
        _events(job.id, service, seen), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _events(name: str, service: Service, seen: int) -> AsyncIterator[str]:
    status, attempt = None, None
    while True:
        live = service.live(name)
        job = await asyncio.to_thread(service.store.get, name)
        assert job is not None
        if live is not None and attempt not in (None, live.attempt):
            seen = 0  # it is made again
        attempt = live.attempt if live is not None else attempt
        ended = job.status in ENDED
        calls = live.calls if live is not None else await asyncio.to_thread(service.store.calls, name) if ended else []
        for call in calls[seen:]:
            seen += 1
            yield _event("call", json.dumps(dict(call)), seen)
        if job.status != status:
            status = job.status
            yield _event("status", shown(job, service).model_dump_json())
        if ended or service.closing:
            return
        await asyncio.sleep(POLL_SECONDS)


def _event(kind: str, data: str, number: int | None = None) -> str:
    identity = "" if number is None else f"id: {number}\n"
    return f"event: {kind}\n{identity}data: {data}\n\n"


@router.get("/models", response_model=ModelList)
def list_models(service: Serving, _asking: Asking) -> ModelList:
    """The bundles that are served."""
    return ModelList(data=[_model(name, bundle.manifest) for name, bundle in service.bundles.items()])


def _model(name: str, manifest: Manifest) -> Model:
    video, sampler = manifest.video, manifest.sampler
    return Model(
        id=name,
        family=manifest.family,
        precision=manifest.precision,
        defaults={
            "width": video.width,
            "height": video.height,
            "frames": video.frames,
            "fps": video.fps,
            "steps": sampler.steps,
            "guidance": sampler.guidance,
        },
        policies=[Policy(name=policy, note=note) for policy, note in policies(manifest)],
        negative_prompt=manifest.guidance.null_captions is None,
        image=manifest.conditioned() and (manifest.latent.decoder == "pixels" or bool(manifest.latent.encoding)),
    )


def shown(job: Job, service: Service) -> Video:
    """A job as clients see it."""
    live = service.live(job.id) if job.status == "in_progress" else None
    trace = numbers(live.calls, live.of) if live is not None and live.calls else job.trace
    keep = service.settings.keep_seconds
    available = job.status == "completed" and job.content is not None
    return Video(
        id=job.id,
        status=job.status,
        progress=100.0 if job.status == "completed" or job.made else live.progress() if live is not None else 0.0,
        model=job.model,
        created_at=job.created,
        started_at=job.started,
        completed_at=job.ended,
        expires_at=job.ended + keep if available and keep is not None and job.ended is not None else None,
        request=job.order.model_dump(exclude={"image"}, exclude_none=True),
        attempts=job.attempts,
        error=Failure(**job.error) if job.error else None,
        trace=TraceNumbers(**trace) if trace else None,
        content=f"/v1/videos/{job.id}/content" if available else None,
    )
