"""What an operator chooses."""

from dataclasses import dataclass
from pathlib import Path

from adacache_engines.contract.engine import BackendConfig
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_runtime.text.device import TextDevice


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        data: folder of the database, the results, and what clients upload.
        database: SQLAlchemy URL; None = SQLite in ``data``.
        results: folder or ``s3://BUCKET/PREFIX``; None = in ``data``.
        devices: what CUDA_VISIBLE_DEVICES is to be in each worker; one worker with all there is by default.
        backend, text_device, embedding_cache: how each worker opens the bundles; see
            :meth:`adacache_runtime.pipeline.Pipeline.open`.
        in_flight: generations that a worker has begun at once.
        memory_budget: bytes that these may take beside the weights; None = what is free.
        queue: jobs that may wait.
        queue_per_client: likewise, of one client.
        attempts: how many workers may die in a step of a job before it fails.
        hang_seconds: that a step may take before its worker is killed.
        max_pixels: frames x height x width of a video.
        max_steps: of a generation.
        max_body: bytes of a request.
        keep_seconds, keep_nbytes: results that are older, or with which there are more, are deleted, the oldest first;
            None = kept.
        forget_seconds: jobs that ended so long ago are deleted, with all that is known of them; None = kept.
        drain_seconds: that running jobs get at the end; what is not finished then, starts again with the next server.
        keys: file of API keys, see :mod:`adacache_serve.keys`; None = everybody may come.
    """

    data: Path
    database: str | None = None
    results: str | None = None
    devices: tuple[str | None, ...] = (None,)
    backend: BackendConfig = OnnxRuntime()
    text_device: TextDevice = "backend"
    embedding_cache: Path | None = None
    in_flight: int = 4
    memory_budget: int | None = None
    queue: int = 1000
    queue_per_client: int = 100
    attempts: int = 3
    hang_seconds: float = 3600.0
    max_pixels: int = 408 * 1080 * 1920
    max_steps: int = 1000
    max_body: int = 16 * 2**20
    keep_seconds: float | None = None
    keep_nbytes: int | None = None
    forget_seconds: float | None = None
    drain_seconds: float = 30.0
    keys: Path | None = None
