"""The fake model with a text encoder of one line, for commands that take prompts."""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.fake import FakeBackend, Function
from adacache_runtime.checking import Checked
from adacache_runtime.generation import Prepared
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Captions, Request
from tests.helpers.model import fake_model


class Prompted(Pipeline):
    """Embeds a prompt as random numbers that depend on it alone."""

    def prepare(self, request: Request | Checked) -> Prepared:
        if isinstance(request, Request) and request.captions is None:
            request = replace(request, prompts=(), captions=embedded(request.prompts))
        return super().prepare(request)


def embedded(prompts: tuple[str, ...]) -> Captions:
    rows = [
        np.random.default_rng(zlib.crc32(text.encode())).standard_normal((4, fake_model.WIDTH), np.float32)
        for text in prompts
    ]
    return Captions(np.stack(rows), np.ones((len(rows), 4), bool))


def prompted(folder: Path, functions: Mapping[str, Function] | None = None, **changes: Any) -> Prompted:
    """A pipeline; ``changes`` are those of the manifest."""
    if not (folder / fake_model.WEIGHTS).exists():
        fake_model.write_weights(folder)
    manifest = fake_model.manifest().model_copy(update=changes)
    return Prompted(Bundle(folder, manifest), FakeBackend(functions or fake_model.functions()))
