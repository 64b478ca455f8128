"""``/v1/videos`` and ``/v1/models``."""

import re
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adacache_engines.errors import InputError
from adacache_runtime.media.video import Frames
from adacache_serve.device.film import MEDIA_TYPES
from adacache_serve.http.bodies import FORM, JSON, order_of
from adacache_serve.http.content import DELETED, file_response
from adacache_serve.http.events import END, seen_until, told
from adacache_serve.http.problems import RETRY_SECONDS, documented
from adacache_serve.http.views import model_of, shown
from adacache_serve.jobs.service import BusyError, Service
from adacache_serve.jobs.store import Job
from adacache_serve.keys import ANONYMOUS, Client, client_of
from adacache_serve.orders import FieldError
from adacache_serve.schema import (
    ENDED,
    CreateVideo,
    ModelList,
    Status,
    Video,
    VideoList,
)
from adacache_serve.uploads import decode_picture, decoded_base64

MOST_PICTURES = 16  # that wait to be read
LONGEST_NAMED = 100  # characters of a client's own that an answer repeats
NAME = re.compile(r"video_[0-9a-f]{32}")

# of the OpenAPI document
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
    "description": "the job is stored",
    "headers": {
        "Location": {"description": "path of the job", "required": True, **TEXT},
        "Idempotent-Replayed": {"description": "true: the job was there already", **TEXT},
    },
}
CONTENT: dict[str, Any] = {"description": "the video", "content": dict.fromkeys(MEDIA_TYPES.values(), BINARY)}
PART = {**CONTENT, "description": "a range of the video", "headers": {"Content-Range": {"required": True, **TEXT}}}
ELSEWHERE = {"description": "where the video is, for an hour", "headers": {"Location": {"required": True, **TEXT}}}
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["status", "call"]},
        "data": {"type": "string", "description": "JSON: of status, a Video; of call, a record of the trace"},
        "id": {"type": "string", "description": "for Last-Event-ID"},
        "retry": {"type": "integer", "description": "milliseconds"},
    },
}
EVENTS: dict[str, Any] = {
    "description": "server-sent events",
    "content": {"text/event-stream": {"schema": EVENT}},
}


async def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def client(
    request: Request, authorization: Annotated[str | None, Header(include_in_schema=False)] = None
) -> Client:
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


# who has no key has no say in what is read
router = APIRouter(prefix="/v1", dependencies=[Depends(client)], responses=documented(401, 503))
Asking = Annotated[Client, Depends(client)]
Serving = Annotated[Service, Depends(service_of)]


def owned(video_id: str, service: Serving, asking: Asking) -> Job:
    """The job of that name, if it is this client's.

    Raises:
        HTTPException: 404, there is none.
    """
    job = service.store.get(video_id) if NAME.fullmatch(video_id) else None
    if job is None or job.client != asking.name:
        raise HTTPException(404, f"there is no video {video_id[:LONGEST_NAMED]!r}")
    return job


Owned = Annotated[Job, Depends(owned)]


Key = Annotated[
    str | None,
    Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$", description="of your own choice, for retries"),
]


@router.post(
    "/videos",
    status_code=202,
    response_model=Video,
    responses={202: ACCEPTED, **documented(403, 408, 409, 413, 415, 422, 429)},
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
    """Stores a job and gives it. With an ``Idempotency-Key`` the same request gives the same job again."""
    decoding: anyio.CapacityLimiter = request.app.state.decoding
    if order.image is None:
        if "image_at" in order.model_fields_set:
            raise FieldError("image_at", "there is no image; give one, or leave this out")
        picture = None
    elif decoding.statistics().tasks_waiting >= MOST_PICTURES:
        raise BusyError("too many images wait to be read", RETRY_SECONDS)
    else:
        picture = await anyio.to_thread.run_sync(_picture, order.image, limiter=decoding)
    job, new = await run_in_threadpool(service.submit, order, asking, picture, idempotency_key, traceparent)
    response.headers["Location"] = f"/v1/videos/{job.id}"
    if not new:
        response.headers["Idempotent-Replayed"] = "true"
    return shown(job, service)


def _picture(image: str) -> Frames:
    try:
        return decode_picture(decoded_base64(image))
    except InputError as error:
        raise FieldError("image", str(error)) from error


@router.get("/videos", response_model=VideoList, responses=documented(404, 422))
def list_videos(
    service: Serving,
    asking: Asking,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64, description="last_id of the page before")] = None,
    status: Status | None = None,
) -> VideoList:
    """The newest first."""
    number = owned(after, service, asking).number if after is not None else None
    found = service.store.newest(asking.name, limit + 1, number, status)
    page = found[:limit]
    more = len(found) > limit
    return VideoList(data=[shown(job, service) for job in page], has_more=more, last_id=page[-1].id if more else None)


@router.get("/videos/{video_id}", response_model=Video, responses=documented(404, 422))
def get_video(job: Owned, service: Serving) -> Video:
    """Its status, progress, error and numbers."""
    return shown(job, service)


@router.delete("/videos/{video_id}", response_model=Video, responses=documented(403, 404, 422))
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
    responses={200: CONTENT, 206: PART, 307: ELSEWHERE, **documented(404, 409, 410, 416, 422)},
)
def get_content(job: Owned, service: Serving, request: Request) -> Response:
    """The video, whole or a range of it; or where it lies, if that is not this server."""
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
    responses={200: EVENTS, 204: {"description": "the last event was seen already"}, **documented(404, 422)},
)
def get_events(
    request: Request,
    job: Owned,
    service: Serving,
    last_event_id: Annotated[str | None, Header(max_length=200, description="to go on after a call")] = None,
) -> Response:
    """Server-sent events: ``status`` with the video, whenever it changes, and ``call`` for each call of the denoiser.
    The last is the status of a job that has ended; who comes back after it gets nothing.
    """
    if last_event_id == END and job.status in ENDED:
        return Response(status_code=204)
    seen = seen_until(last_event_id)
    looking: anyio.CapacityLimiter = request.app.state.looking
    return StreamingResponse(
        told(job.id, service, seen, looking, lambda now: shown(now, service).model_dump_json()),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/models", response_model=ModelList, responses=documented(422))
def list_models(service: Serving, _asking: Asking) -> ModelList:
    """The bundles that are served."""
    return ModelList(data=[model_of(name, bundle.manifest) for name, bundle in service.bundles.items()])
