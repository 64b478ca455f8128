"""The real Triton server, which the package nvidia-pytriton carries, and a client of it.

Its Python backend finds Python by PATH and ignores PYTHONPATH, so it gets a virtual environment, which has this
environment's packages behind this checkout; and numpy 1, the last that this version of it can read.
"""

import importlib.util
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.waiting import HANG_SECONDS, until

ROOT = Path(__file__).parents[3]
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
NUMPY_1 = Path(sys.prefix, "triton")
TYPES = {"TYPE_STRING": "BYTES", "TYPE_FP64": "FP64", "TYPE_INT64": "INT64"}
NUMPY_TYPES = {"BYTES": np.object_, "FP64": np.float64, "INT64": np.int64}


def package() -> Path:
    """Return the folder of the server; skip the test where it is not installed."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        pytest.skip("nvidia-pytriton, which has the server, is not installed: pip install --no-deps nvidia-pytriton")
    if not NUMPY_1.is_dir():
        pytest.skip(f"numpy 1 is not there: pip install --no-deps --target {NUMPY_1} numpy==1.26.4")
    return Path(found.origin).parent / "tritonserver"


def python() -> str:
    """Return a Python with the shared library that the backend loads: this one, or the system's."""
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return sys.executable
    found = shutil.which(f"python{VERSION}", path="/usr/bin")
    if found is None:
        pytest.skip(f"Triton's Python backend needs libpython{VERSION}.so, and no Python here has it")
    return found


@dataclass
class Answer:
    """The responses to one request, in order.

    Attributes:
        progress: the progress messages, for calls and for frames.
        video, media_type, seed, trace: the outputs of the last response.
        error: the error that ended the request.
        ended: whether the last response has come.
    """

    progress: list[dict] = field(default_factory=list)
    video: bytes | None = None
    media_type: str | None = None
    seed: int | None = None
    trace: dict | None = None
    error: str | None = None
    ended: bool = False


class Client:
    """A client of one model, with a stream for each request."""

    def __init__(self, name: str, grpc: str, http: str) -> None:
        import tritonclient.grpc

        self._grpc, self._name, self._address, self.http = tritonclient.grpc, name, grpc, http

    def ask(self, **fields: Any) -> "Asking":
        return Asking(self._grpc, self._address, self._name, fields)

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=HANG_SECONDS) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


class Asking:
    """A request that has been sent."""

    def __init__(self, grpc: Any, address: str, name: str, fields: dict[str, Any]) -> None:
        from adacache_serve.triton.config import INPUTS

        self._client = grpc.InferenceServerClient(address)
        self._responses: queue.Queue = queue.Queue()
        self._client.start_stream(lambda result, error: self._responses.put((result, error)))
        inputs = []
        for field_name, value in fields.items():
            kind = TYPES[INPUTS[field_name]]
            given = value.encode() if isinstance(value, str) else value
            tensor = grpc.InferInput(field_name, [1], kind)
            tensor.set_data_from_numpy(np.array([given], NUMPY_TYPES[kind]))
            inputs.append(tensor)
        self.answer = Answer()
        self._client.async_stream_infer(name, inputs, enable_empty_final_response=True)

    def next(self, seconds: float = HANG_SECONDS) -> None:
        """Wait for the next response, and add it to the answer."""
        result, error = self._responses.get(timeout=seconds)
        if error is not None:
            self.answer.error, self.answer.ended = error.message(), True
            return
        for output in result.get_response().outputs:
            values = result.as_numpy(output.name)
            if output.name == "progress":
                assert self.answer.video is None, "progress after the video"
                self.answer.progress.append(json.loads(values[0]))
            elif output.name == "trace":
                self.answer.trace = json.loads(values[0])
            elif output.name == "media_type":
                self.answer.media_type = values[0].decode()
            else:
                setattr(self.answer, output.name, values.tobytes() if output.name == "video" else int(values[0]))
        self.answer.ended = result.get_response().parameters["triton_final_response"].bool_param

    def whole(self) -> Answer:
        while not self.answer.ended:
            self.next()
        self._client.stop_stream()
        self._client.close()
        return self.answer

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


@contextmanager
def triton(repository: Path, folder: Path, name: str, *options: str) -> Iterator[Client]:
    """Run the server on a model repository; yield a client.

    Args:
        repository: the model repository.
        folder: folder for the server's files; its log is ``log.txt`` there.
        name: name of the client's model.
        options: further options of the server's command line.
    """
    server = package()
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends)
    shutil.copy(server / "python_backend_stubs" / VERSION / "triton_python_backend_stub", backends / "python")
    environment = _environment(folder / "python")
    http, grpc = _free_ports()
    command = [
        *(server / "bin" / "tritonserver", "--model-repository", repository, "--backend-directory", backends),
        *("--http-address", "127.0.0.1", "--http-port", str(http), "--allow-metrics", "false"),
        *("--grpc-address", "127.0.0.1", "--grpc-port", str(grpc), "--exit-timeout-secs", "10"),
        *("--backend-config", f"python,shm-region-prefix-name=adacache-{os.getpid()}-{grpc}", *options),
    ]
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    client = Client(name, f"127.0.0.1:{grpc}", f"127.0.0.1:{http}")
    try:
        until(lambda: client.get("/v2/health/ready") == 200 or process.poll() is not None)
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        yield client
    finally:
        process.terminate()
        try:
            process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """Variables with which the server finds a Python for its backend, and its libraries."""
    subprocess.run([python(), "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    packages = package().parent.parent
    paths = (NUMPY_1, ROOT, ROOT / "engines", ROOT / "runtime", ROOT / "tests", packages)
    (site / "checkout.pth").write_text("\n".join(map(str, paths)))
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for listening in (one, other):
            listening.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
