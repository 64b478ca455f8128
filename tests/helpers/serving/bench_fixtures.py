"""Fixtures of services on fake workers; a folder's conftest imports them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adacache_serve.jobs import publishing, service
from tests.helpers.serving.fake_server import write_model
from tests.helpers.serving.fake_workers import Bench, Benches


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake"
    write_model(folder, conditioned=True)
    return folder


@pytest.fixture
def benches(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Benches]:
    made = []
    monkeypatch.setattr(service, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(publishing, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(publishing, "LEAVE_SECONDS", 0.5)

    def make(**settings: Any) -> Bench:
        made.append(Bench(tmp_path, model, monkeypatch, **settings))
        return made[-1]

    yield make
    for bench in made:
        bench.service.settings = bench.settings
        bench.service.stop()


@pytest.fixture
def bench(benches: Benches) -> Bench:
    return benches()
