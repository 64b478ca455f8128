"""onnxruntime-gpu as it travels: its module and CUDA provider, with the code of one kind of GPU."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from adacache_engines.errors import InputError
from tests.helpers.gpu.fat_binaries import CUBIN, fat_binary, library
from tools.gpu.pack.onnxruntime_gpu import PROVIDER, trimmed
from tools.gpu.pack.packages import PYTHON, check_wheels
from tools.gpu.pack.parts import LIMIT_MB, Archive, nbytes_of, write_parts

VERSION = "1.31.1"
MODULE = {
    "onnxruntime/__init__.py": b"the module",
    "onnxruntime/LICENSE": b"MIT",
    "onnxruntime/ThirdPartyNotices.txt": b"notices",
    "onnxruntime/capi/libonnxruntime_providers_shared.so": b"shared",
    "onnxruntime_gpu-1.0.dist-info/METADATA": b"Name: onnxruntime-gpu",
}
NOT_NEEDED = (
    "onnxruntime/transformers/models/a.py",
    "onnxruntime/capi/libonnxruntime.so.1.0",
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
)


def wheel(folder: Path, content: dict[str, bytes]) -> Path:
    file = folder / "onnxruntime_gpu-1.0-cp312-cp312-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file


def test_the_module_and_the_provider_are_unpacked_and_trimmed(tmp_path: Path) -> None:
    codes = [(CUBIN, 80, b"eighty " * 8), (CUBIN, 90, b"ninety " * 8)]
    content = {**MODULE, PROVIDER: library([fat_binary(codes)]), **dict.fromkeys(NOT_NEEDED, b"not needed")}
    folder = tmp_path / "made"
    told = trimmed(wheel(tmp_path, content), folder, "9.0")
    assert "of code for compute capability 9.0 stay" in told
    assert "(MB by architecture: 80 0)" in told
    made = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(made) == {*MODULE, PROVIDER, "onnxruntime/CHANGED.txt"}
    assert all(made[name].read_bytes() == data for name, data in MODULE.items())
    provider = made[PROVIDER].read_bytes()
    assert b"ninety" in provider
    assert b"eighty" not in provider
    note = made["onnxruntime/CHANGED.txt"].read_text()
    assert PROVIDER in note
    assert "not for distribution" in note


def test_a_wheel_without_the_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"onnxruntime_gpu-1.0-.*whl has no onnxruntime/capi/libonnxruntime_providers"):
        trimmed(wheel(tmp_path, MODULE), tmp_path / "made", "9.0")


@pytest.mark.slow
def test_the_real_wheel_takes_two_parts(tmp_path: Path) -> None:
    """Both parts of the trimmed wheel together are hardly larger than one part may be."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [
        "--python-version",
        PYTHON,
        "--platform",
        "manylinux_2_28_x86_64",
        "--platform",
        "manylinux_2_27_x86_64",
    ]
    done = subprocess.run(
        [*command, "-d", str(tmp_path), f"onnxruntime-gpu=={VERSION}"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"onnxruntime-gpu {VERSION} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    (file,) = tmp_path.glob("*.whl")
    with pytest.raises(InputError, match=r"the wheels of .*pydantic.* are missing"):
        check_wheels([file])
    folder = tmp_path / "content" / "onnxruntime-gpu"
    trimmed(file, folder, "9.0")
    (tmp_path / "parts").mkdir()
    parts = write_parts(tmp_path / "parts", [Archive("onnxruntime-gpu", folder.parent, 2)])
    assert len(parts) == 2
    assert max(map(nbytes_of, parts)) < 0.6 * LIMIT_MB * 1e6, "room for a checkout beside a part"
    assert (folder / "onnxruntime" / "LICENSE").is_file()
    assert (folder / "onnxruntime" / "ThirdPartyNotices.txt").is_file()
