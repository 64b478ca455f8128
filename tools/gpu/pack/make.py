"""Pack everything that the check needs for a machine without a package registry, in parts that can travel.

The first part has the project, bundles and wheels: all but what needs ONNX Runtime's CUDA provider. The provider and
its Python module are the others, where a wheel of onnxruntime-gpu is given.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from adacache_engines.errors import InputError, MissingDependencyError
from tools.gpu.machine import exporter_missing
from tools.gpu.model import make_bundles
from tools.gpu.pack import contents, onnxruntime_gpu
from tools.gpu.pack.fatbin import architecture
from tools.gpu.pack.packages import check_wheels
from tools.gpu.pack.parts import LIMIT_MB, Archive, nbytes_of, write_parts
from tools.gpu.phases import LARGE, PRECISIONS
from tools.gpu.skeleton import HEADER, strip

PROVIDER_PARTS = 2  # that a trimmed onnxruntime-gpu may take
RUN = Path(__file__).with_name("run.sh")


def pack(
    folder: Path,
    wheels: Sequence[Path],
    bundles: Path | None = None,
    capability: str | None = None,
    limit_mb: float = LIMIT_MB,
) -> None:
    """Make the folder with the parts, and print what each carries.

    Args:
        folder: the new folder.
        wheels: wheels of packages that the other machine lacks; onnxruntime-gpu is trimmed.
        bundles: folder of bundles that were made before; None = they are exported here.
        capability: compute capability of the GPU, such as ``9.0``: plans and machine code of others are left out. None
            = no plans.
        limit_mb: largest size of a part.

    Raises:
        InputError: the folder exists, ``capability`` is none, a wheel is missing or of another Python, onnxruntime-gpu
            has no code for the GPU or no capability is given for it, or a part would be too large.
        MissingDependencyError: there are no bundles, and none can be exported.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another place for the pack")
    if capability is not None:
        architecture(capability)
    check_wheels(wheels)
    providers = [wheel for wheel in wheels if wheel.match(onnxruntime_gpu.WHEEL)]
    if providers and capability is None:
        raise InputError(f"{providers[0].name} is trimmed for one GPU; add its --capability, such as 9.0")
    missing = exporter_missing() if bundles is None else None
    if missing is not None:
        raise MissingDependencyError(f"a pack needs bundles, and none can be exported here: {missing}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adacache-pack-", dir=folder.parent) as name:
        work = Path(name)
        project = work / "project"
        contents.copy_sources(project / "project")
        shutil.copyfile(RUN, project / RUN.name)
        for wheel in wheels:
            if wheel not in providers:
                with zipfile.ZipFile(wheel) as files:
                    files.extractall(project / "site")
        _bundles(project / "bundles", bundles, capability)
        archives = [Archive("project", project)]
        for wheel in providers[:1]:
            provider = work / "provider"
            print(onnxruntime_gpu.trimmed(wheel, provider / "onnxruntime-gpu", capability or ""))
            archives.append(Archive("onnxruntime-gpu", provider, PROVIDER_PARTS))
        (work / "parts").mkdir()
        parts = write_parts(work / "parts", archives, limit_mb)
        (work / "parts").rename(folder)
    for part in parts:
        (piece,) = (path.name for path in (folder / part.name).iterdir() if path.suffix not in (".py", ".json"))
        print(f"{folder / part.name}: {nbytes_of(folder / part.name) / 1e6:.1f} MB, {piece}")
    print("on the machine with the GPU, for each part: python3 part-1/unpack.py FOLDER; then: sh FOLDER/run.sh")


def _bundles(made: Path, given: Path | None, capability: str | None) -> None:
    """Make or copy the bundles, without plans for other GPUs and without weights that are drawn there."""
    made.mkdir()
    if given is None:
        make_bundles(made)
    else:
        for name in (*PRECISIONS, LARGE):
            shutil.copytree(given / name, made / name)
    for name in (*PRECISIONS, LARGE):
        contents.drop_plans(made / name, capability)
    if not list((made / LARGE).rglob(f"*{HEADER}")):
        strip(made / LARGE)
