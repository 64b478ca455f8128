"""A bundle as a model of Triton's Python backend.

Triton's requests are orders to a worker like those of adacache-serve: a process of its own, which makes several videos
in turn and is restarted when it dies. ``adacache-export --triton-repository`` writes the model that imports this
module. It needs no web server and no database.
"""

import importlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from adacache_engines.bundle.files import open_bundle
from adacache_engines.errors import BundleError, EngineError, MissingDependencyError
from adacache_runtime.denoising.experts import check_offload
from adacache_runtime.media.video import Frames
from adacache_serve.commands.serve import open_models
from adacache_serve.device.messages import (
    Begin,
    Called,
    Cancel,
    Cancelled,
    Completed,
    Decoded,
    Failed,
    FromWorker,
    Memory,
    Ready,
)
from adacache_serve.device.supervisor import SupervisedWorker
from adacache_serve.device.video_file import MEDIA_TYPES
from adacache_serve.device.worker import Models
from adacache_serve.disk.spool import read_record
from adacache_serve.orders.check import FieldError, check, with_seed
from adacache_serve.orders.images import image_of_order, write_image
from adacache_serve.orders.schema import MAX_IMAGE, CreateVideo
from adacache_serve.settings import Settings
from adacache_serve.triton.config import INPUTS, MODEL, settings_of

log = logging.getLogger(__name__)
POLL_SECONDS = 0.05  # between two checks for cancelled requests
PYTHON_TYPES = {"TYPE_STRING": "bytes", "TYPE_FP64": "float", "TYPE_INT64": "int"}
MAX_IMAGE_NBYTES = MAX_IMAGE // 4 * 3  # as over HTTP, where it is text in base64


@dataclass
class Pending:
    """A request that the worker has.

    Attributes:
        sender: Triton's sender of its responses.
        seed: seed of its noise.
        cancelled: whether the worker was told to cancel it.
    """

    sender: Any
    seed: int
    cancelled: bool = False


class TritonPythonModel:
    """The class that the Python backend expects: it calls :meth:`initialize`, :meth:`execute` and :meth:`finalize`.

    Attributes:
        open_models: loads the bundles of some folders in the worker's process.
    """

    open_models: Callable[[Sequence[Path], Settings], Models] = staticmethod(open_models)

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the worker, and wait until it has made a short video.

        Args:
            args: Triton's description of the model and its instance.

        Raises:
            BundleError: a file of the bundle was changed.
            EngineError: the worker could not start; its log says why.
            InputError: a parameter is not possible.
            MissingDependencyError: Triton cannot read arrays of this numpy.
        """
        self._triton = importlib.import_module("triton_python_backend_utils")
        _check_numpy(self._triton)
        given = json.loads(args["model_config"])["parameters"]
        self._settings = settings_of({name: value["string_value"] for name, value in given.items()})
        folder = Path(args["model_repository"], args["model_version"], MODEL)
        self._bundle = open_bundle(folder)
        if self._settings.expert_offload:
            check_offload(folder, self._bundle.manifest)
        self._files = tempfile.TemporaryDirectory(prefix="adacache-triton-")
        self._settings = replace(self._settings, data=Path(self._files.name))
        self._pending: dict[str, Pending] = {}
        # guards the pending requests; Triton itself dies when a sender is used after its last response
        self._lock = threading.Lock()
        self._names = map(str, count(1))
        self._places = threading.Semaphore(self._settings.places)
        self._began, self._ending = threading.Event(), threading.Event()
        device = None
        if args["model_instance_kind"] == "GPU":
            device = visible_device(int(args["model_instance_device_id"]), os.environ.get("CUDA_VISIBLE_DEVICES"))
        opening = partial(self.open_models, (folder,))
        self._worker = SupervisedWorker(self._settings, device, opening, self._hear, self._died)
        self._worker.start()
        self._began.wait()
        if not self._worker.ready:
            self._worker.stop()
            raise EngineError(f"{folder}: the worker ended before its first video; its log says why")
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Give requests to the worker; wait while all its places are taken, so that Triton keeps the queue."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                order, content = self._order(request)
                order = with_seed(order)
                settled = check(order, self._bundle, self._settings, image=content is not None)
                image = None if content is None else image_of_order(content, settled, self._bundle)
            except FieldError as error:
                self._refuse(sender, f"{error.field}: {error}" if error.field else str(error))
            except ValidationError as error:
                wrong = error.errors()[0]
                self._refuse(sender, f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}")
            except (BundleError, OSError) as error:  # this machine's, and not the request's
                log.error("a request cannot be checked", exc_info=error)
                message = f"the request cannot be checked: {error}; try again later"
                self._refuse(sender, message, self._triton.TritonError.UNAVAILABLE)
            except Exception as error:  # whatever it is, it is this request's, and the others go on
                log.exception("a request cannot be checked")
                message = f"the request cannot be checked ({type(error).__name__}); the log of the model says why"
                self._refuse(sender, message, self._triton.TritonError.INTERNAL)
            else:
                self._places.acquire()
                self._begin(sender, order, image)

    def finalize(self) -> None:
        """Wait for the pending requests, and stop the worker."""
        for _ in range(self._settings.places):
            self._places.acquire()
        self._ending.set()
        self._watching.join()
        self._files.cleanup()
        self._worker.stop()

    def _begin(self, sender: Any, order: CreateVideo, image: Frames | None) -> None:
        name = next(self._names)
        file = self._path(f"{name}.npy") if image is not None else None
        if file is not None and image is not None:
            try:
                write_image(file, image)
            except OSError as error:
                log.error("an image cannot be stored", exc_info=error)
                self._places.release()
                message = f"the image cannot be stored: {error.strerror}; try again later"
                self._refuse(sender, message, self._triton.TritonError.UNAVAILABLE)
                return
        assert order.seed is not None
        with self._lock:
            self._pending[name] = Pending(sender, order.seed)
            if not self._worker.ready:
                self._lost(name)
                return
            self._worker.send(
                Begin(
                    job=name,
                    attempt=1,
                    model=MODEL,
                    order=order,
                    image=str(file) if file else None,
                    output=str(self._path(name)),
                )
            )

    def _path(self, name: str) -> Path:
        return Path(self._files.name, name)

    def _order(self, request: Any) -> tuple[CreateVideo, bytes | None]:
        """Return the order of a request, and the content of its image.

        Raises:
            FieldError: a tensor is not what its input takes.
            ValidationError: a field is not possible.
        """
        given = {
            name: _value(name, kind, tensor)
            for name, kind in INPUTS.items()
            if (tensor := self._triton.get_input_tensor_by_name(request, name)) is not None
        }
        content = given.pop("image", None)
        return CreateVideo(**given), content

    def _watch(self) -> None:
        """Tell the worker which requests were cancelled."""
        while not self._ending.wait(POLL_SECONDS):
            with self._lock:
                for name, pending in self._pending.items():
                    if not pending.cancelled and _is_cancelled(pending.sender):
                        pending.cancelled = True
                        self._worker.send(Cancel(job=name))

    def _died(self, _worker: SupervisedWorker) -> None:
        with self._lock:
            for name in list(self._pending):
                self._lost(name)
        self._began.set()

    def _lost(self, name: str) -> None:
        message = "the worker process died and is restarted; send the request again"
        self._refuse(self._pending[name].sender, message, self._triton.TritonError.UNAVAILABLE)
        self._forget(name)

    def _hear(self, _worker: SupervisedWorker, message: FromWorker) -> None:
        """Answer requests with the worker's messages."""
        if isinstance(message, Ready):
            self._began.set()
            return
        if isinstance(message, Memory):
            return
        with self._lock:
            if message.job not in self._pending:
                return
            pending = self._pending[message.job]
            try:
                self._answer(pending, message)
            except Exception as error:  # Triton's, which may have too little shared memory
                log.exception("Triton refuses a response", extra={"job": message.job})
                self._refuse(pending.sender, f"Triton refuses the response: {error}", self._triton.TritonError.INTERNAL)
                self._worker.send(Cancel(job=message.job))
                self._forget(message.job)
            else:
                if isinstance(message, Completed | Failed | Cancelled):
                    self._forget(message.job)

    def _answer(self, pending: Pending, message: FromWorker) -> None:
        error = self._triton.TritonError
        if isinstance(message, Called):
            self._send(pending.sender, progress=json.dumps({**message.call, "of": message.of}))
        elif isinstance(message, Decoded):
            self._send(pending.sender, progress=json.dumps({"frames": message.frames, "of": message.of}))
        elif isinstance(message, Failed):
            code = error.INTERNAL if message.code == "internal" else error.INVALID_ARG
            self._refuse(pending.sender, message.message, code)
        elif isinstance(message, Cancelled):
            self._refuse(pending.sender, "the request was cancelled", error.CANCELLED)
        elif isinstance(message, Completed):
            file = self._path(message.file)
            record = read_record(file)
            assert record is not None
            self._send(
                pending.sender,
                last=True,
                video=np.fromfile(file, np.uint8),
                media_type=MEDIA_TYPES[file.suffix],
                seed=np.array([pending.seed]),
                trace=record.trace(),
            )

    def _forget(self, name: str) -> None:
        for path in Path(self._files.name).glob(f"{name}.*"):
            path.unlink()
        del self._pending[name]
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
        try:
            sender.send(response, flags=self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:  # Triton's; other requests are still to be answered
            log.exception("Triton refuses an error")


def _value(name: str, kind: str, tensor: Any) -> Any:
    """Return the one value of an input's tensor, a text as a string and an image as bytes.

    Raises:
        FieldError: the tensor has another number of values or another type, or a text is not UTF-8.
    """
    try:
        array = tensor.as_numpy()
    except Exception as error:  # Triton's, whose strings carry their lengths
        raise FieldError(name, "the tensor cannot be read") from error
    if array.size != 1:
        raise FieldError(name, f"the tensor has the shape {list(array.shape)[:8]}; expected one value")
    value: Any = array.reshape(-1).tolist()[0]
    if type(value).__name__ != PYTHON_TYPES[kind]:
        raise FieldError(name, f"the tensor is one of {str(array.dtype)[:40]}; expected {kind}")
    if name == "image":
        if len(value) > MAX_IMAGE_NBYTES:
            raise FieldError(name, f"the image has {len(value)} bytes; expected at most {MAX_IMAGE_NBYTES}")
        return value
    if kind != "TYPE_STRING":
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise FieldError(name, f"the text is not UTF-8: {error.reason} at byte {error.start}") from error


def _is_cancelled(sender: Any) -> bool:
    try:
        return bool(sender.is_cancelled())
    except Exception:  # Triton's; the other requests are still to be watched
        log.exception("Triton does not say whether a request is cancelled")
        return False


def visible_device(number: int, seen: str | None) -> str:
    """Return CUDA_VISIBLE_DEVICES for a worker on a GPU, by its number among the GPUs that Triton sees.

    Args:
        number: Triton's number of the GPU, from 0.
        seen: CUDA_VISIBLE_DEVICES of Triton's own process; None = all GPUs.
    """
    return seen.split(",")[number] if seen else str(number)


def _check_numpy(triton: Any) -> None:
    """Check that Triton reads numpy's arrays, which its Python backend before Triton 25 does not with numpy 2.

    Raises:
        MissingDependencyError: Triton reads them wrongly.
    """
    if int(np.__version__.split(".")[0]) < 2:
        return
    numbers = np.arange(2)
    if not np.array_equal(triton.Tensor.from_dlpack("numbers", numbers).as_numpy(), numbers):
        raise MissingDependencyError(
            f'this Triton\'s Python backend cannot read arrays of numpy {np.__version__}: pip install "numpy<2"'
        )
