"""The README's curl commands do what it says, against a server."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import events, served, service, write_model
from tests.helpers.waiting import HANG_SECONDS

README = (Path(__file__).parents[3] / "runtime" / "README.md").read_text(encoding="utf-8")
BLOCK = re.search(r"<!-- curl: begin -->\s*```sh\n(.*?)```\s*<!-- curl: end -->", README, re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    assert BLOCK is not None
    commands = BLOCK[1]
    assert commands.count(ADDRESS) == 1
    write_model(tmp_path / "models" / "fake", conditioned=True)
    folder = tmp_path / "here"
    folder.mkdir()
    with served(service(Settings(tmp_path / "data"), tmp_path / "models" / "fake")) as client:
        script = commands.replace(ADDRESS, str(client.base_url))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        videos = client.get("/v1/videos").json()["data"]
    assert [video["status"] for video in videos] == ["cancelled", "completed"]
    told = done.stdout[done.stdout.index("retry:") :].partition('\n\n{"id"')[0]
    assert [data["call"] for kind, data in events(told) if kind == "call"] == [*range(1, 7)]
    (film,) = folder.iterdir()
    assert film.read_bytes()[4:8] == b"ftyp"
