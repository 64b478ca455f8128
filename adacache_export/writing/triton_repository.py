"""A bundle as a model of Triton Inference Server, in a model repository.

The files of a repository ``DIR`` with a model ``NAME``::

    DIR/NAME/config.pbtxt         inputs, outputs, instances, parameters; never changed once it is there
    DIR/NAME/1/model.py           imports the runtime that is installed beside Triton
    DIR/NAME/1/bundle/            the bundle, so that the folder can be moved or uploaded as it is
    DIR/NAME/2/                   the next bundle of that name

A version appears whole, by being renamed, or not at all, and is not changed afterwards. Files of the bundle are hard
links where the file system has them, which costs no space and is safe: bundles never change a file in place.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adacache_engines.backends import BACKENDS, default_backend
from adacache_engines.bundle.files import MANIFEST, open_bundle, read_manifest
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.contract.options import options_of
from adacache_engines.errors import InputError
from adacache_engines.tensorrt.plans import check_plans
from adacache_export.phases import Progress
from adacache_export.writing.folder import scratch
from adacache_serve.orders.check import check_servable
from adacache_serve.triton.config import INPUTS, MODEL, OUTPUTS, parameters

CONFIG, CODE = "config.pbtxt", "model.py"
CPU = "cpu"
MODEL_PY = '''"""Made by adacache-export, whose runtime, installed in Triton's Python, does the work."""

from adacache_serve.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Model:
    """A version of a model in a repository.

    Attributes:
        folder: folder of the version.
        new: whether it was written now; else it was there already.
        config_differs: whether there was a config.pbtxt, which was left as it is, that these choices would not make.
    """

    folder: Path
    new: bool
    config_differs: bool


def add_to_repository(repository: Path, source: Path, devices: Sequence[str], progress: Progress) -> Model:
    """Write a bundle as the next version of its model, unless the newest version is this bundle already.

    Args:
        repository: folder of the repository; it is made if it is missing.
        source: folder of the bundle, whose name is the model's.
        devices: ``cpu``, or numbers of GPUs that get an instance each; empty = every GPU for a bundle with plans, else
            the CPU.
        progress: object that is told of every phase.

    Raises:
        BundleError: the bundle, or the one in the newest version, was changed.
        ExportError: the disk is full or cannot be written to.
        InputError: the bundle makes no videos of prompts, a device is unknown, a file is in the way, or another process
            changed the bundle meanwhile.
    """
    manifest = read_manifest(source)
    check_servable(source, manifest)
    config = config_pbtxt(manifest, devices)
    nbytes = sum(entry.nbytes for entry in manifest.files.values())
    nbytes += sum({entry.path: entry.nbytes for plans in manifest.plans.values() for entry in plans.plans}.values())
    _check(source, "the bundle", nbytes, progress)
    model = model_folder(repository, source)
    for folder in (repository, model):
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            raise InputError(f"{folder} is in the way; move it, or choose another folder")
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{repository} cannot be made: {error.strerror or error}") from error
    newest = max(_versions(model), default=0)
    differs = (model / CONFIG).is_file() and (model / CONFIG).read_text(encoding="utf-8") != config
    if newest and _same(model / str(newest) / MODEL, source):
        _check(model / str(newest) / MODEL, f"version {newest}", nbytes, progress)
        return Model(model / str(newest), new=False, config_differs=differs)
    with scratch(repository, model.name, 0) as folder:
        version = folder / str(newest + 1)
        version.mkdir()
        (version / CODE).write_text(MODEL_PY, encoding="utf-8")
        try:
            _take(source, version / MODEL, manifest)
        except FileNotFoundError as error:
            raise InputError(f"{source} was changed meanwhile ({error.filename} is gone); try again") from error
        if read_manifest(version / MODEL) != manifest:
            raise InputError(f"{source} was changed meanwhile; try again")
        _check(version / MODEL, "the copy", nbytes, progress)
        if not (model / CONFIG).is_file():
            (folder / CONFIG).write_text(config, encoding="utf-8")
        for path in (folder, version, version / MODEL):
            path.chmod(0o755)
        _publish(folder, model, version)
    return Model(model / version.name, new=True, config_differs=differs)


def model_folder(repository: Path, source: Path) -> Path:
    """Return the folder of the model that a bundle becomes in a repository."""
    return repository / source.resolve().name.removesuffix(".adacache")


def _versions(model: Path) -> list[int]:
    """Return the versions of a model as Triton counts them: folders named by numbers that do not begin with 0."""
    if not model.is_dir():
        return []
    names = [path.name for path in model.iterdir() if path.is_dir()]
    return [int(name) for name in names if name.isascii() and name.isdecimal() and not name.startswith("0")]


def _same(one: Path, other: Path) -> bool:
    """Whether two bundles have the same manifest, which has the hash of every file."""
    manifest = one / MANIFEST
    return manifest.is_file() and manifest.read_bytes() == (other / MANIFEST).read_bytes()


def _take(source: Path, bundle: Path, manifest: Manifest) -> None:
    """Link or copy all files that a manifest names, and no others."""
    for name in (MANIFEST, *manifest.files, *_plan_files(manifest)):
        target = bundle / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link((source / name).resolve(), target)
        except OSError:  # the file is on another file system, on one without links, or belongs to another user
            shutil.copy(source / name, target)


def _plan_files(manifest: Manifest) -> list[str]:
    return sorted({entry.path for plans in manifest.plans.values() for entry in plans.plans})


def _check(folder: Path, name: str, nbytes: int, progress: Progress) -> None:
    step = progress.phase(f"checking {name}", nbytes)
    bundle = open_bundle(folder, step)
    for plans in bundle.manifest.plans.values():
        check_plans(bundle, plans, step)


def _publish(folder: Path, model: Path, version: Path) -> None:
    """Rename a built folder to the model, or its version to one more version of a model that is there."""
    if not model.exists():
        folder.rename(model)
        return
    if (folder / CONFIG).exists():
        (folder / CONFIG).rename(model / CONFIG)
    try:
        version.rename(model / version.name)
    except OSError as error:
        raise InputError(f"{model / version.name} was made by another export meanwhile; try again") from error


def config_pbtxt(manifest: Manifest, devices: Sequence[str]) -> str:
    """Return the configuration of a bundle's model for Triton.

    Args:
        manifest: manifest of the bundle.
        devices: ``cpu``, or numbers of GPUs; see :func:`add_to_repository`.

    Raises:
        InputError: a device is neither.
    """
    libraries = sorted({plans.library for plans in manifest.plans.values()})
    on_cpu = list(devices) == [CPU] or (not devices and not libraries)
    if not on_cpu and not all(device.isdecimal() and device.isascii() for device in devices):
        raise InputError(f"--triton-device {', '.join(devices)} is not possible; give cpu, or numbers of GPUs")
    backend = default_backend() if on_cpu or not libraries else libraries[0]
    chosen = {} if on_cpu or libraries else {"provider": "cuda"}
    instances = "kind: KIND_CPU" if on_cpu else "kind: KIND_GPU"
    if not on_cpu and devices:
        instances += f", gpus: [ {', '.join(devices)} ]"
    required, *optional = INPUTS
    inputs = [f'  {{ name: "{required}", data_type: {INPUTS[required]}, dims: [ 1 ] }}']
    inputs += [f'  {{ name: "{name}", data_type: {INPUTS[name]}, dims: [ 1 ], optional: true }}' for name in optional]
    outputs = [f'  {{ name: "{name}", data_type: {kind}, dims: [ {size} ] }}' for name, (kind, size) in OUTPUTS.items()]
    lines = [
        "# Made by adacache-export, which does not change it any more: it is yours.",
        'backend: "python"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        "input [",
        ",\n".join(inputs),
        "]",
        "output [",
        ",\n".join(outputs),
        "]",
        "# an instance is a process with the weights of its own; count is 1",
        f"instance_group [ {{ {instances}, count: 1 }} ]",
        "# in_flight: videos that an instance makes in turn; memory_budget: MB for these, 0 = what is free",
        "# expert_offload: load one of two experts at a time, for a device that cannot hold both; in_flight is 1 then",
        *(f"# {name}: {option.help}" for name, option in options_of(BACKENDS[backend]).items()),
        *(
            f'parameters {{ key: "{key}", value {{ string_value: "{value}" }} }}'
            for key, value in parameters(backend, chosen).items()
        ),
    ]
    return "\n".join(lines) + "\n"
