"""Limits of bodies: their size, the time they take, and the room that all of them have together."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from adacache_serve.http.limits import SMALL_NBYTES, Limited
from adacache_serve.settings import Settings

KB = 1024
SETTINGS = Settings(Path("data"), max_body=300 * KB, receive_nbytes=400 * KB)


async def read_all(_scope: Scope, receive: Receive, _send: Send) -> None:
    while (await receive()).get("more_body"):
        pass


class Requests:
    """Requests to the middleware, each with a body that comes as a test says."""

    def __init__(self, settings: Settings, app: Callable[[Scope, Receive, Send], Awaitable[None]] = read_all) -> None:
        self.limited = Limited(app, settings, None)
        self.answers: list[int] = []

    async def send(self, receive: Receive, *headers: tuple[bytes, bytes]) -> None:
        """Make a request; what it raises is its answer."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answers.append(message["status"])

        scope = {"type": "http", "method": "POST", "path": "/v1/videos", "headers": list(headers)}
        try:
            await self.limited(scope, receive, answer)
        except HTTPException as error:
            self.answers.append(error.status_code)

    @asynccontextmanager
    async def held(self, nbytes: int) -> AsyncIterator[None]:
        """Keep a request that has sent so many bytes, and has not sent the last."""
        arrived, over = anyio.Event(), anyio.Event()
        chunks = iter([nbytes])

        async def receive() -> Message:
            if (chunk := next(chunks, None)) is not None:
                return {"type": "http.request", "body": bytes(chunk), "more_body": True}
            arrived.set()
            await over.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async with anyio.create_task_group() as group:
            group.start_soon(self.send, receive)
            await arrived.wait()
            yield
            over.set()


def body(sizes: Iterable[int]) -> Receive:
    """Return a body that arrives in chunks of these sizes."""
    left = list(sizes)

    async def receive() -> Message:
        chunk = left.pop(0)
        return {"type": "http.request", "body": bytes(chunk), "more_body": bool(left)}

    return receive


async def never() -> Message:
    await anyio.sleep_forever()
    raise AssertionError


def length(nbytes: int) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % nbytes)


def run(test: Callable[[], Awaitable[Any]]) -> None:
    anyio.run(test)


def test_large_bodies_have_a_room_together_and_small_ones_always_have_some() -> None:
    async def test() -> None:
        requests = Requests(SETTINGS)
        async with requests.held(SMALL_NBYTES + 300 * KB - KB - SMALL_NBYTES), requests.held(SMALL_NBYTES):
            await requests.send(body([250 * KB]))
            assert requests.answers == [503]
            await requests.send(never, length(250 * KB))  # refused before it is read
            assert requests.answers == [503, 503]
            await requests.send(body([SMALL_NBYTES]), length(SMALL_NBYTES))
            await requests.send(body([100 * KB]))
            assert requests.answers == [503, 503]
        await requests.send(body([250 * KB]))  # the room is there again
        assert requests.answers == [503, 503]
        assert requests.limited._held_nbytes == 0

    run(test)


def test_a_length_that_is_only_stated_takes_no_room() -> None:
    async def test() -> None:
        requests = Requests(SETTINGS)
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(requests.send, never, length(300 * KB))
            await anyio.wait_all_tasks_blocked()
            await requests.send(body([300 * KB]), length(300 * KB))
            assert requests.answers == []
            group.cancel_scope.cancel()
        assert requests.limited._held_nbytes == 0

    run(test)


def test_bodies_of_too_many_bytes_are_refused_and_give_their_room_back() -> None:
    async def test() -> None:
        requests = Requests(SETTINGS)
        await requests.send(never, length(300 * KB + 1))
        await requests.send(never, (b"content-length", b"9" * 5000))
        await requests.send(body([100 * KB] * 4))
        assert requests.answers == [413] * 3
        assert requests.limited._held_nbytes == 0

    run(test)


def test_a_body_that_does_not_come_is_given_up_unless_it_was_answered() -> None:
    async def test() -> None:
        settings = Settings(Path("data"), body_seconds=0.01)
        requests = Requests(settings)
        await requests.send(never)
        assert requests.answers == [408]

        asked, waits = 0, anyio.Event()

        async def gone() -> Message:
            nonlocal asked
            asked += 1
            if asked == 1:  # until the time for the body is over
                waits.set()
                await anyio.sleep_forever()
            return {"type": "http.disconnect"}

        async def stream(_scope: Scope, receive: Receive, send: Send) -> None:
            async def listen() -> None:
                assert (await receive())["type"] == "http.disconnect"

            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                await waits.wait()
                await send({"type": "http.response.start", "status": 200, "headers": []})

        streams = Requests(settings, stream)
        await streams.send(gone)
        assert (streams.answers, asked) == ([200], 2)

    run(test)


@pytest.mark.parametrize("site", [b"cross-site", b"same-site"])
def test_a_refused_request_is_not_read(site: bytes) -> None:
    async def test() -> None:
        requests = Requests(SETTINGS)
        await requests.send(never, (b"sec-fetch-site", site))
        assert requests.answers == [403]

    run(test)
