"""Take from the wheel of onnxruntime-gpu what one kind of GPU needs of it.

The wheel has 256 MB, most of it machine code of other GPUs. What is left compresses to about 60 MB: the Python module,
the CUDA provider with the code of one architecture, and the licences.
"""

import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

from adacache_engines.errors import InputError
from tools.gpu.pack.fatbin import trim

WHEEL = "onnxruntime_gpu-*.whl"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
# tools that import it, the library for programs in C, and another provider
LEFT_OUT = (
    *("onnxruntime/backend/*", "onnxruntime/datasets/*", "onnxruntime/quantization/*", "onnxruntime/tools/*"),
    *("onnxruntime/transformers/*", "onnxruntime/capi/libonnxruntime.so.*"),
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
)
NOTE = """\
This copy of onnxruntime-gpu was changed: in {provider}, machine code
for GPUs other than those of compute capability {capability} was overwritten with zeros, and files were left out. It was
made to be carried to one machine, is not for distribution, and runs on no other kind of GPU. LICENSE and
ThirdPartyNotices.txt beside this file are unchanged and apply to it.
"""


def trimmed(wheel: Path, folder: Path, capability: str) -> str:
    """Unpack the wheel's module and CUDA provider into a new folder; return a line on what was trimmed.

    Args:
        wheel: file of onnxruntime-gpu.
        folder: new folder, to be put on PYTHONPATH.
        capability: compute capability of the GPU, such as ``9.0``.

    Raises:
        InputError: the wheel has no CUDA provider, or none for this GPU.
    """
    with zipfile.ZipFile(wheel) as content:
        names = [name for name in content.namelist() if not name.endswith("/")]
        if PROVIDER not in names:
            raise InputError(f"{wheel.name} has no {PROVIDER}; expected a wheel of onnxruntime-gpu for Linux")
        for name in names:
            if not any(fnmatchcase(name, pattern) for pattern in LEFT_OUT):
                content.extract(name, folder)
    result = trim(folder / PROVIDER, capability)
    (folder / "onnxruntime" / "CHANGED.txt").write_text(NOTE.format(provider=PROVIDER, capability=capability))
    others = ", ".join(f"{number} {nbytes / 1e6:.0f}" for number, nbytes in sorted(result.zeroed.items()))
    return (
        f"{wheel.name}: {sum(result.kept.values()) / 1e6:.0f} MB of code for compute capability {capability} stay, "
        f"{sum(result.zeroed.values()) / 1e6:.0f} MB of other architectures are zeros (MB by architecture: {others})"
    )
