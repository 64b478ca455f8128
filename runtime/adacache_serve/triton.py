"""A bundle in Triton's Python backend. A request of Triton's is an order, and the worker of the HTTP server makes it,
as a thread of Triton's process: so videos take turns on the device, within its memory, as they do there.

``adacache-export --triton-repository`` writes the model that imports this.
"""

import importlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from adacache_engines.backends import ONNXRUNTIME
from adacache_engines.errors import InputError, MissingDependencyError
from adacache_runtime.pipeline import Pipeline
from adacache_serve.messages import (
    Begin,
    Called,
    Cancel,
    Cancelled,
    Completed,
    Decoded,
    Failed,
    Ready,
    ToWorker,
    from_worker,
)
from adacache_serve.orders import FieldError, check, with_seed
from adacache_serve.schema import CreateVideo
from adacache_serve.settings import Settings
from adacache_serve.uploads import decode_picture, write_picture
from adacache_serve.worker import Worker

log = logging.getLogger(__name__)
MODEL = "bundle"  # the folder beside model.py, and what the worker calls the model
# what a request has, by Triton's types: fields of an order, the first of them required
INPUTS: Mapping[str, str] = {
    "prompt": "TYPE_STRING",
    "negative_prompt": "TYPE_STRING",
    "size": "TYPE_STRING",
    "aspect": "TYPE_STRING",
    "seconds": "TYPE_FP64",
    "frames": "TYPE_INT64",
    "seed": "TYPE_INT64",
    "steps": "TYPE_INT64",
    "guidance": "TYPE_FP64",
    "policy": "TYPE_STRING",
    "image": "TYPE_STRING",  # the bytes of a picture's file
    "image_at": "TYPE_INT64",
    "priority": "TYPE_INT64",
}
# a response has either progress, or everything else and is the last; type and dimensions
OUTPUTS: Mapping[str, tuple[str, int]] = {
    "progress": ("TYPE_STRING", 1),
    "video": ("TYPE_UINT8", -1),
    "media_type": ("TYPE_STRING", 1),
    "seed": ("TYPE_INT64", 1),
    "trace": ("TYPE_STRING", 1),
}
MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png"}
POLL_SECONDS = 0.05  # between two looks for requests that were cancelled, while nothing happens


@dataclass
class Asked:
    """A request that is being made.

    Attributes:
        sender: of its responses.
        seed: of its noise.
        calls: so far, as :func:`adacache_runtime.trace.entry` has them.
        cancelled: the worker was told.
    """

    sender: Any
    seed: int
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    cancelled: bool = False


class TritonPythonModel:
    """What the Python backend calls: :meth:`initialize` once, :meth:`execute` for each request, :meth:`finalize`."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the bundle, and makes a short video.

        Raises:
            AdaCacheError: the bundle was changed, or a parameter is not possible.
        """
        self._triton = importlib.import_module("triton_python_backend_utils")
        _check_numpy(self._triton)
        if args["model_instance_kind"] == "GPU":
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(int(args["model_instance_device_id"]), seen)
        given = {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}
        folder = Path(args["model_repository"], args["model_version"], MODEL)
        parameters = parameters_of(given)
        self._settings = settings_of(parameters)
        pipeline = self.open(folder, parameters)
        self._bundle = pipeline.bundle
        self._files = tempfile.TemporaryDirectory(prefix="adacache-triton-")
        self._connection, theirs = Pipe()
        self._sending = threading.Lock()
        self._asked: dict[str, Asked] = {}
        self._names = map(str, count(1))
        self._places = threading.Semaphore(self._settings.in_flight)
        worker = Worker(theirs, {MODEL: pipeline}, self._settings)
        worker.warm_up()
        self._threads = [
            threading.Thread(target=_work, args=(worker, theirs), daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def open(self, folder: Path, parameters: Mapping[str, Any]) -> Pipeline:
        """The bundle, on what the parameters say."""
        backend, provider, threads = (parameters[name] for name in ("backend", "provider", "threads"))
        return Pipeline.open(folder, backend, provider, threads)

    def execute(self, requests: Sequence[Any]) -> None:
        """Begins each request; waits while ``in_flight`` are being made, so that Triton keeps the queue."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                order, picture = self._order(request)
                order = with_seed(order)
                check(order, self._bundle, self._settings, picture)
            except FieldError as error:
                self._refuse(sender, f"{error.field}: {error}" if error.field else str(error))
                continue
            except ValidationError as error:
                wrong = error.errors()[0]
                self._refuse(sender, f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}")
                continue
            self._places.acquire()
            name = next(self._names)
            file = None
            if picture is not None:
                file = self._path(f"{name}.npy")
                write_picture(file, picture)
            assert order.seed is not None
            self._asked[name] = Asked(sender, order.seed)
            self._tell(
                Begin(
                    job=name,
                    attempt=1,
                    model=MODEL,
                    order=order,
                    picture=str(file) if file else None,
                    output=str(self._path(name)),
                )
            )

    def finalize(self) -> None:
        """After what is being made."""
        for _ in range(self._settings.in_flight):
            self._places.acquire()
        self._connection.close()
        for thread in self._threads:
            thread.join()
        self._files.cleanup()

    def _path(self, name: str) -> Path:
        return Path(self._files.name, name)

    def _order(self, request: Any) -> tuple[CreateVideo, Any]:
        """What a request asks for, and the pixels of its image.

        Raises:
            FieldError: the image is none, or a text is no UTF-8.
            ValidationError: a field is not possible.
        """
        given: dict[str, Any] = {}
        for name, kind in INPUTS.items():
            tensor = self._triton.get_input_tensor_by_name(request, name)
            if tensor is not None:
                (value,) = tensor.as_numpy().reshape(-1).tolist()
                given[name] = value
                if kind == "TYPE_STRING" and name != "image":
                    try:
                        given[name] = value.decode()
                    except UnicodeDecodeError as error:
                        raise FieldError(name, f"the text is no UTF-8: {error}") from error
        content = given.pop("image", None)
        order = CreateVideo(**given)
        try:
            return order, decode_picture(content) if content is not None else None
        except InputError as error:
            raise FieldError("image", str(error)) from error

    def _tell(self, message: ToWorker) -> None:
        with self._sending:
            self._connection.send_bytes(message.model_dump_json().encode())

    def _listen(self) -> None:
        """Passes on what the worker says, and tells it of requests that were cancelled."""
        while True:
            try:
                if self._connection.poll(POLL_SECONDS):
                    self._hear(from_worker.validate_json(self._connection.recv_bytes()))
            except (EOFError, OSError):
                return  # finalize
            for name, asked in list(self._asked.items()):
                if not asked.cancelled and asked.sender.is_cancelled():
                    asked.cancelled = True
                    self._tell(Cancel(job=name))

    def _hear(self, message: Any) -> None:
        if isinstance(message, Ready) or message.job not in self._asked:
            return
        asked, error = self._asked[message.job], self._triton.TritonError
        if isinstance(message, Called):
            asked.calls.append(message.call)
            self._send(asked.sender, progress=json.dumps({**message.call, "of": message.of}))
        elif isinstance(message, Decoded):
            self._send(asked.sender, progress=json.dumps({"frames": message.frames, "of": message.of}))
        elif isinstance(message, Completed):
            file = self._path(message.file)
            self._send(
                asked.sender,
                last=True,
                video=np.fromfile(file, np.uint8),
                media_type=MEDIA_TYPES[file.suffix],
                seed=np.array([asked.seed]),
                trace=json.dumps({"calls": asked.calls}),
            )
            self._forget(message.job)
        elif isinstance(message, Failed):
            code = error.INTERNAL if message.code == "internal" else error.INVALID_ARG
            self._refuse(asked.sender, message.message, code)
            self._forget(message.job)
        elif isinstance(message, Cancelled):
            self._refuse(asked.sender, "the request was cancelled", error.CANCELLED)
            self._forget(message.job)

    def _forget(self, name: str) -> None:
        for path in Path(self._files.name).glob(f"{name}.*"):
            path.unlink()
        del self._asked[name]
        self._places.release()

    def _send(self, sender: Any, last: bool = False, **outputs: Any) -> None:
        arrays = {
            name: np.array([value.encode()], np.object_) if isinstance(value, str) else value
            for name, value in outputs.items()
        }
        tensors = [self._triton.Tensor(name, array) for name, array in arrays.items()]
        flags = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        sender.send(self._triton.InferenceResponse(output_tensors=tensors), flags=flags)

    def _refuse(self, sender: Any, message: str, code: Any = None) -> None:
        error = self._triton.TritonError
        response = self._triton.InferenceResponse(error=error(message, error.INVALID_ARG if code is None else code))
        sender.send(response, flags=self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _work(worker: Worker, connection: Connection) -> None:
    try:
        worker.run()
    except (EOFError, OSError):
        connection.close()  # finalize
    except BaseException:
        log.exception("the worker failed")
        os._exit(1)  # Triton notices that its process is gone; it would wait for a thread for ever


# of config.pbtxt: name -> default; the names are those of adacache-serve's options
PARAMETERS: Mapping[str, str | int] = {
    "backend": ONNXRUNTIME,
    "provider": "cpu",
    "threads": 0,
    "in_flight": 4,
    "memory_budget": 0,
    "max_pixels": Settings.max_pixels,
    "max_steps": Settings.max_steps,
}


def parameters_of(given: Mapping[str, str]) -> dict[str, Any]:
    """Those of a config.pbtxt, with the defaults of the others.

    Raises:
        InputError: one is unknown, or no whole number where it has to be.
    """
    found: dict[str, Any] = dict(PARAMETERS)
    for name, value in given.items():
        if name not in PARAMETERS:
            raise InputError(f"parameter {name!r} in config.pbtxt is unknown; known: {', '.join(PARAMETERS)}")
        if isinstance(PARAMETERS[name], int):
            if not value.isdecimal() or (not int(value) and name not in ("threads", "memory_budget")):
                raise InputError(f"parameter {name} in config.pbtxt is {value!r}; expected a whole number, at least 1")
            found[name] = int(value)
        else:
            found[name] = value
    return found


def settings_of(parameters: Mapping[str, Any]) -> Settings:
    """Of the worker; ``memory_budget`` in MB, 0 = what is free."""
    budget = parameters["memory_budget"]
    return Settings(
        Path(),
        in_flight=parameters["in_flight"],
        memory_budget=budget * 10**6 if budget else None,
        max_pixels=parameters["max_pixels"],
        max_steps=parameters["max_steps"],
    )


def visible_device(number: int, seen: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES is to be, for the GPU that Triton counts as this one of those it sees itself."""
    return seen.split(",")[number] if seen else str(number)


def _check_numpy(triton: Any) -> None:
    """Before Triton 25, the Python backend reads numpy 2's arrays wrongly.

    Raises:
        MissingDependencyError: it does so here.
    """
    if int(np.__version__.split(".")[0]) < 2:
        return
    numbers = np.arange(2)
    if not np.array_equal(triton.Tensor.from_dlpack("numbers", numbers).as_numpy(), numbers):
        raise MissingDependencyError(
            f'this Triton\'s Python backend cannot read arrays of numpy {np.__version__}: pip install "numpy<2"'
        )
