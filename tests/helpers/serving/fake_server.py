"""A server on the fake model, whose worker processes are real and whose videos take milliseconds.

Prompts can ask for more: ``slow`` sleeps in every call, ``die`` kills its worker, ``break`` fails inside an engine,
``stall`` sleeps in one for longer than any test waits.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tokenizers
import uvicorn
from tokenizers import models, pre_tokenizers, processors

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.fake import FakeBackend, Function
from adacache_engines.errors import EngineError
from adacache_runtime.pipeline import Pipeline
from adacache_serve.device.process import Open
from adacache_serve.http.app import create_app
from adacache_serve.http.connections import config_of
from adacache_serve.http.hosts import hosts_of
from adacache_serve.jobs.results import open_results
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Store
from adacache_serve.keys import KeyFile
from adacache_serve.settings import Settings
from tests.helpers.model import fake_model
from tests.helpers.model.experts import functions_of_experts
from tests.helpers.waiting import HANG_SECONDS, until

WORDS = ("<pad>", "</s>", "<unk>", "slow", "die", "break", "stall")
SLOW_SECONDS = 0.03  # a call
STALL_SECONDS = 10 * HANG_SECONDS
LENGTH = 4


def tokenizer_json() -> str:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(WORDS[:3]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()


def write_model(folder: Path, conditioned: bool = False, **more: Any) -> Bundle:
    """Write the fake model as a bundle that takes prompts, with ``more`` changes of its manifest."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    (folder / "encoder.onnx").write_text("the graph of the encoder", encoding="utf-8")
    tokens = fake_model.spec("tokens", "batch", "text", dtype="int64")
    mask = fake_model.spec("mask", "batch", "text", dtype="bool")
    captions = fake_model.spec("captions", "batch", "text", fake_model.WIDTH)
    encoder = Graph(name="encoder", path="encoder.onnx", inputs=(tokens, mask), outputs=(captions,))
    plain = fake_model.manifest()
    text = plain.text.model_copy(update={"tokenizer": "tokenizer.json", "encoder_stages": (encoder,)})
    weights = {"text_encoder": fake_model.WEIGHTS}
    changes = {"text": text, "part_weights": weights, **(fake_model.conditioned(plain) if conditioned else {}), **more}
    return fake_model.write_bundle(folder, **changes)


def encode(given: Mapping[str, Any]) -> dict[str, Any]:
    tokens = given["tokens"]
    if (tokens == WORDS.index("die")).any():
        os.kill(os.getpid(), signal.SIGKILL)
    if (tokens == WORDS.index("stall")).any():
        time.sleep(STALL_SECONDS)
    if (tokens == WORDS.index("break")).any():
        raise EngineError("the fake encoder breaks at this prompt")
    slow = 100.0 * (tokens == WORDS.index("slow"))[:, :, None]  # a mark that the blocks see
    return {"captions": np.sin(tokens[:, :, None] + np.arange(fake_model.WIDTH)).astype(np.float32) + slow}


def functions() -> dict[str, Function]:
    plain = fake_model.functions()

    def block(given: Mapping[str, Any]) -> Mapping[str, Any]:
        text = given["text"]
        if (text > 40).any():
            time.sleep(SLOW_SECONDS)
        return plain[fake_model.BLOCKS[0]]({**given, "text": np.where(text > 40, text - 50, text)})

    return {**plain, fake_model.BLOCKS[0]: block, "encoder": encode}


def open_models(folders: tuple[Path, ...], _settings: Settings) -> dict[str, Pipeline]:
    """Open the fake models in a worker process."""
    all_functions = {**functions_of_experts(), **functions()}
    return {folder.name: Pipeline(open_bundle(folder), FakeBackend(all_functions)) for folder in folders}


def service(settings: Settings, *folders: Path, opener: Open | None = None) -> Service:
    """Return a service with real worker processes."""
    settings.data.mkdir(parents=True, exist_ok=True)
    store = Store(settings.database or f"sqlite:///{settings.data / 'jobs.sqlite'}")
    results = open_results(settings.results or str(settings.data / "results"))
    bundles = {folder.name: open_bundle(folder) for folder in folders}
    return Service(settings, bundles, store, results, opener or partial(open_models, folders))


@contextmanager
def served(
    made: Service, keys: KeyFile | None = None, listening: socket.socket | None = None
) -> Iterator[httpx.Client]:
    """Serve over HTTP on a free port, or on ``listening``; yield a client once the server is ready."""
    hosts = hosts_of("127.0.0.1", made.settings, keys=keys is not None)
    if listening is None:
        listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = uvicorn.Server(config_of(create_app(made, keys, hosts), made.settings))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_SECONDS) as client:
            until(lambda: client.get("/readyz").status_code == 200)
            yield client
    finally:
        server.should_exit = True
        thread.join()


def events(text: str) -> list[tuple[str, Any]]:
    """Parse server-sent events into pairs of kind and data."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" not in lines:  # a comment
            continue
        found.append((lines["event"], json.loads(lines["data"])))
    return found
