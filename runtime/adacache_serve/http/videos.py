"""The routes ``/v1/videos`` and ``/v1/models``."""

import asyncio
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from adacache_serve.device.video_file import MEDIA_TYPES
from adacache_serve.http.bodies import FORM, JSON, order_of
from adacache_serve.http.content import DELETED, file_response
from adacache_serve.http.events import END, seen_until, stream
from adacache_serve.http.problems import RETRY_SECONDS, documented
from adacache_serve.http.schema import ModelList, Video, VideoList
from adacache_serve.http.views import shown
from adacache_serve.jobs.service import BusyError, Service
from adacache_serve.jobs.store import Job
from adacache_serve.keys import ANONYMOUS, Client, KeyFile, client_of
from adacache_serve.orders.check import FieldError
from adacache_serve.orders.schema import ENDED, CreateVideo, Status

MOST_IMAGES = 16  # that wait to be decoded
LONGEST_NAMED = 100  # characters of a client's id that an answer repeats
NAME = re.compile(r"video_[0-9a-f]{32}")

# parts of the OpenAPI document
BINARY = {"schema": {"type": "string", "format": "binary"}}
TEXT = {"schema": {"type": "string"}}
BODY = {
    "required": True,
    "content": {
        JSON: {"schema": {"$ref": "#/components/schemas/CreateVideo"}},
        FORM: {"schema": {"$ref": "#/components/schemas/CreateVideoForm"}},
    },
}
ACCEPTED: dict[str, Any] = {
    "description": "The job is stored.",
    "headers": {
        "Location": {"description": "The path of the job.", "required": True, **TEXT},
        "Idempotent-Replayed": {"description": "true, if the job existed already.", **TEXT},
    },
}
CONTENT: dict[str, Any] = {"description": "The video.", "content": dict.fromkeys(MEDIA_TYPES.values(), BINARY)}
PART = {**CONTENT, "description": "A range of the video.", "headers": {"Content-Range": {"required": True, **TEXT}}}
ELSEWHERE = {
    "description": "The URL of the video, which is valid for an hour.",
    "headers": {"Location": {"required": True, **TEXT}},
}
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["status", "call"]},
        "data": {"type": "string", "description": "JSON: a Video for status, the record of a denoiser call for call."},
        "id": {"type": "string", "description": "The value of Last-Event-ID that continues after this event."},
        "retry": {"type": "integer", "description": "The milliseconds after which to connect again."},
    },
}
EVENTS: dict[str, Any] = {
    "description": "Server-sent events.",
    "content": {"text/event-stream": {"schema": EVENT}},
}


async def service_of(request: Request) -> Service:
    """Return the application's service."""
    service: Service = request.app.state.service
    return service


async def client(
    request: Request, authorization: Annotated[str | None, Header(include_in_schema=False)] = None
) -> Client:
    """Return the client, by ``Authorization: Bearer KEY``.

    Raises:
        HTTPException: 401, the key is missing or unknown.
    """
    keys: KeyFile | None = request.app.state.keys
    if keys is None:
        return ANONYMOUS
    kind, _, key = (authorization or "").partition(" ")
    found = client_of(key, keys.clients()) if kind.lower() == "bearer" else None
    if found is None:
        raise HTTPException(
            401,
            "the API key is missing or unknown; send the header Authorization: Bearer KEY",
            {"WWW-Authenticate": "Bearer"},
        )
    return found


# the key is checked before anything else is read
router = APIRouter(prefix="/v1", dependencies=[Depends(client)], responses=documented(401, 421, 503))
Asking = Annotated[Client, Depends(client)]
Serving = Annotated[Service, Depends(service_of)]


def owned(video_id: str, service: Serving, asking: Asking) -> Job:
    """Return a job of this client by its id.

    Raises:
        HTTPException: 404, the client has no such job.
    """
    job = service.store.get(video_id) if NAME.fullmatch(video_id) else None
    if job is None or job.client != asking.name:
        raise HTTPException(404, f"there is no video {video_id[:LONGEST_NAMED]!r}")
    return job


Owned = Annotated[Job, Depends(owned)]


Key = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Any value of your choice: a repeated request with the same key creates no second job.",
    ),
]


@router.post(
    "/videos",
    status_code=202,
    response_model=Video,
    responses={202: ACCEPTED, **documented(403, 408, 409, 413, 415, 422, 429, 507)},
    openapi_extra={"requestBody": BODY},
)
async def create_video(
    request: Request,
    response: Response,
    order: Annotated[CreateVideo, Depends(order_of)],
    service: Serving,
    asking: Asking,
    idempotency_key: Key = None,
    traceparent: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Video:
    """Create a job. A request that is repeated with the same ``Idempotency-Key`` returns the same job."""
    submit = partial(service.submit, order, asking, idempotency_key, traceparent)
    if order.image is not None:
        job, new = await _submitted_with_image(request, submit)
    elif "image_at" in order.model_fields_set:
        raise FieldError("image_at", "image_at needs an image; send one, or leave image_at out")
    else:
        job, new = await run_in_threadpool(submit)
    response.headers["Location"] = f"/v1/videos/{job.id}"
    if not new:
        response.headers["Idempotent-Replayed"] = "true"
    return shown(job, service)


async def _submitted_with_image(request: Request, submit: Callable[..., tuple[Job, bool]]) -> tuple[Job, bool]:
    """Submit an order whose image has to be decoded, which few do at once; give it up where the client leaves.

    Raises:
        BusyError: too many images wait already.
        ClientDisconnect: the client has left.
    """
    decoding: anyio.CapacityLimiter = request.app.state.decoding
    if decoding.statistics().tasks_waiting >= MOST_IMAGES:
        raise BusyError("too many images are waiting to be decoded; try again later", RETRY_SECONDS)
    gone = threading.Event()
    with anyio.CancelScope() as waiting:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone.set()
            waiting.cancel()

        watching = asyncio.create_task(watch())
        try:
            return await anyio.to_thread.run_sync(partial(submit, given_up=gone), limiter=decoding)
        except FieldError as error:
            if gone.is_set():
                raise ClientDisconnect from error
            raise
        finally:
            watching.cancel()
    raise ClientDisconnect


@router.get("/videos", response_model=VideoList, responses=documented(404, 422))
def list_videos(
    service: Serving,
    asking: Asking,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64, description="The last_id of the previous page.")] = None,
    status: Status | None = None,
) -> VideoList:
    """List jobs, the newest first."""
    number = owned(after, service, asking).number if after is not None else None
    found = service.store.newest(asking.name, limit + 1, number, status)
    page = found[:limit]
    more = len(found) > limit
    return VideoList(data=[shown(job, service) for job in page], has_more=more, last_id=page[-1].id if more else None)


@router.get("/videos/{video_id}", response_model=Video, responses=documented(404, 422))
def get_video(job: Owned, service: Serving) -> Video:
    """Return a job: its status, progress, error and numbers."""
    return shown(job, service)


@router.delete("/videos/{video_id}", response_model=Video, responses=documented(403, 404, 422))
def delete_video(job: Owned, service: Serving) -> Video:
    """Cancel a job, between two denoiser calls, or delete the content of a job that has ended."""
    if not service.cancel(job.id) and (ended := service.store.get(job.id)):
        service.retention.delete_content(ended)
    left = service.store.get(job.id)
    assert left is not None
    return shown(left, service)


@router.get(
    "/videos/{video_id}/content",
    response_class=Response,
    responses={200: CONTENT, 206: PART, 307: ELSEWHERE, **documented(404, 409, 410, 416, 422)},
)
def get_content(job: Owned, service: Serving, request: Request) -> Response:
    """Return the video or a range of it, or redirect to the place where it is kept."""
    if job.status != "completed":
        raise HTTPException(409, f"this video is {job.status.replace('_', ' ')}, so it has no content")
    path = service.results.path(job.content) if job.content else None
    if job.content is not None and path is None:
        return RedirectResponse(service.results.link(job.content) or "", 307)
    if path is None:
        raise HTTPException(410, DELETED)
    return file_response(path, request.headers)


@router.get(
    "/videos/{video_id}/events",
    response_class=Response,
    responses={200: EVENTS, 204: {"description": "The last event was received already."}, **documented(404, 422)},
)
def get_events(
    request: Request,
    job: Owned,
    service: Serving,
    last_event_id: Annotated[
        str | None,
        Header(max_length=200, description="The id of the last event that was received, to continue after it."),
    ] = None,
) -> Response:
    """Stream events: ``status`` with the job whenever its status changes, and ``call`` for each denoiser call.

    The last event is the status of the ended job; a client that connects again after it gets 204.
    """
    if last_event_id == END and job.status in ENDED:
        return Response(status_code=204)
    seen = seen_until(last_event_id)
    looking: anyio.CapacityLimiter = request.app.state.looking
    return StreamingResponse(
        stream(job.id, service, seen, looking, lambda now: shown(now, service).model_dump_json()),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/models", response_model=ModelList, responses=documented(422))
def list_models(request: Request, _asking: Asking) -> ModelList:
    """List the models that are served, with their defaults and policies."""
    models: ModelList = request.app.state.models
    return models
