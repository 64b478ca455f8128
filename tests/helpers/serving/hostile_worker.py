"""A worker process that misbehaves at the first attempt at a job, and makes a video of later ones without a model."""

import os
import signal
import struct
from multiprocessing.connection import Connection
from pathlib import Path

from adacache_serve.device.messages import Began, Begin, Completed, Failed, FromWorker, Ready, Turn, to_worker
from adacache_serve.disk.locks import worker_lock
from adacache_serve.disk.spool import finish
from adacache_serve.settings import Settings

VIDEO = b"a video"
TOO_LONG = struct.pack("!i", 2**31 - 1)
TOO_LONG_64 = struct.pack("!iQ", -1, 2**62)
RAW = {  # written to the pipe as they are
    "a message cut in its middle": struct.pack("!i", 1000) + b'{"kind":',
    "a length of two gigabytes": TOO_LONG,
    "a length of 2**62": TOO_LONG_64,
    "half a length": b"\x00\x00",
}
SENT = {  # sent as messages
    "no JSON": b"\xff\x00\xfe garbage",
    "an empty message": b"",
    "a list": b"[" * 5000,
    "an unknown kind": b'{"kind":"root","job":"x","attempt":1}',
    "a number that is no number": b'{"kind":"turn","job":"x","attempt":"NaN"}',
    "a field too many": b'{"kind":"ready","pid":1,"also":"this"}',
}
ENDS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "aborted": signal.SIGABRT, "segfault": signal.SIGSEGV}
KINDS = (*RAW, *SENT, *ENDS, "an exit", "an end without a video", "words about others")


def work(connection: Connection, settings: Settings, _device: str | None, _open: object) -> None:
    """Stand in for :func:`adacache_serve.device.process.work`; the prompt says how to misbehave at a first attempt."""

    def say(message: FromWorker) -> None:
        connection.send_bytes(message.model_dump_json().encode())

    with worker_lock(settings.data):
        say(Ready(pid=os.getpid()))
        while True:
            message = to_worker.validate_json(connection.recv_bytes())
            if not isinstance(message, Begin):
                continue
            job, attempt, prompt = message.job, message.attempt, message.order.prompt
            say(Turn(job=job, attempt=attempt))
            say(Began(job=job, attempt=attempt, nbytes=1))
            if attempt == 1:
                misbehave(connection, prompt, message)
            video = Path(f"{message.output}.mp4")
            if prompt != "an end without a video" or attempt > 1:
                video.write_bytes(VIDEO)
                finish(video, 0, [])
            say(Completed(job=job, attempt=attempt, file=video.name, nbytes=len(VIDEO)))


def misbehave(connection: Connection, kind: str, begin: Begin) -> None:
    if kind in RAW:
        os.write(connection.fileno(), RAW[kind])
        os._exit(0)
    if kind in SENT:
        connection.send_bytes(SENT[kind])
        signal.pause()  # until it is killed for that
    if kind in ENDS:
        os.kill(os.getpid(), ENDS[kind])
    if kind == "an exit":
        os._exit(7)
    if kind == "words about others":
        for job, attempt in (("video_of_nobody", 1), (begin.job, 99), (begin.job, -1), ("", 0)):
            failed = Failed(job=job, attempt=attempt, code="x", message="y")
            connection.send_bytes(failed.model_dump_json().encode())
