"""The settings that an operator chooses."""

from dataclasses import dataclass
from pathlib import Path

from adacache_engines.contract.engine import BackendConfig
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_runtime.text.device import TextDevice


@dataclass(frozen=True)
class Settings:
    """A server's settings.

    Attributes:
        data: folder of the database, the results, and the images that clients send.
        database: SQLAlchemy's URL of the database; None = SQLite in ``data``.
        results: folder of finished videos, or ``s3://BUCKET/PREFIX``; None = a folder in ``data``.
        devices: value of CUDA_VISIBLE_DEVICES for each worker; by default one worker that sees all devices.
        backend: the backend that runs the bundles.
        text_device: the device of the text encoder; see :meth:`adacache_runtime.pipeline.Pipeline.open`.
        embedding_cache: folder in which the embeddings of prompts are kept; None = they are not kept.
        expert_offload: whether engines of one expert at a time are loaded; then a worker makes one generation at a
            time, whatever ``in_flight`` is, since each change of turns would load engines.
        in_flight: number of generations that share a worker.
        memory_budget: memory that these may take beside the weights, in bytes; None = all that is free.
        queue: number of jobs that may wait.
        queue_per_client: number of jobs of one client that may wait.
        attempts: number of workers that may die in a step of a job before the job fails.
        hang_seconds: time that a step may take before its worker is killed.
        max_pixels: largest frames x height x width of a video.
        max_steps: largest number of steps of a generation.
        max_body: largest size of an HTTP request, in bytes.
        body_seconds: time in which the body of a request must arrive.
        receive_nbytes: bytes of the bodies that are kept at a time, of all requests together; the first 64 KiB of each
            do not count.
        max_connections: number of open connections.
        header_seconds: time in which the headers of a request must arrive.
        keep_seconds: age at which results are deleted; None = never.
        keep_nbytes: bytes of results beyond which the oldest are deleted; None = no limit.
        forget_seconds: time after its end at which a job is deleted, with everything known of it; None = never.
        drain_seconds: time that running jobs get when the server stops; the next server restarts those that need more.
        keys: file of API keys, see :mod:`adacache_serve.keys`; None = no key is needed.
        host: name or address by which the operator chose the address to listen on.
        allowed_hosts: names and addresses that requests may name beside those of the server itself, see
            :mod:`adacache_serve.http.hosts`. Where a key is needed and none is listed, any may be named.
    """

    data: Path
    database: str | None = None
    results: str | None = None
    devices: tuple[str | None, ...] = (None,)
    backend: BackendConfig = OnnxRuntime()
    text_device: TextDevice = "backend"
    embedding_cache: Path | None = None
    expert_offload: bool = False
    in_flight: int = 4
    memory_budget: int | None = None
    queue: int = 1000
    queue_per_client: int = 100
    attempts: int = 3
    hang_seconds: float = 3600.0
    max_pixels: int = 408 * 1080 * 1920
    max_steps: int = 1000
    max_body: int = 16 * 2**20
    body_seconds: float = 120.0
    receive_nbytes: int = 128 * 10**6
    max_connections: int = 500
    header_seconds: float = 10.0
    keep_seconds: float | None = None
    keep_nbytes: int | None = None
    forget_seconds: float | None = None
    drain_seconds: float = 30.0
    keys: Path | None = None
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()

    @property
    def places(self) -> int:
        """Number of generations that a worker has at a time."""
        return 1 if self.expert_offload else self.in_flight
