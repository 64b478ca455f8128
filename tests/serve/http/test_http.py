"""The API against its own OpenAPI document, and what a request may not do."""

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from adacache_serve.keys import KeyFile, new_key
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service, write_model

# DELETE leaves the job, without its content; and not all that the document allows can be made by every model
NOT_MEANT = ("use_after_free", "ensure_resource_availability", "positive_data_acceptance")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "models" / "fake", conditioned=True)
    key, line = new_key("me")
    (folder / "keys").write_text(line)
    with served(service(Settings(folder / "data"), folder / "models" / "fake"), KeyFile(folder / "keys")) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        yield client


def explore(client: httpx.Client, *options: str) -> None:
    """Lets schemathesis try what the OpenAPI document allows and what it does not."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{client.base_url}/openapi.json"]
    usual = ["--seed", "1", "--generation-deterministic", "--no-color"]
    header = ["--header", f"Authorization: {client.headers['Authorization']}"]
    done = subprocess.run(
        [*command, *usual, *header, "--exclude-checks", ",".join(NOT_MEANT), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_answer_is_as_documented(client: httpx.Client) -> None:
    explore(client, "--phases", "coverage,fuzzing", "--max-examples", "3")


@pytest.mark.slow
def test_every_answer_on_the_way_through_the_api_is_as_documented(client: httpx.Client) -> None:
    explore(client, "--max-examples", "100")
