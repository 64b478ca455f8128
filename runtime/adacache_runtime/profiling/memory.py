"""What a generation's tensors and weights take, by kind, as far as it follows from the bundle and the request."""

from collections.abc import Mapping

from adacache_engines.bundle import Manifest
from adacache_runtime.plan import GRANULARITIES, residual_nbytes


def memory_nbytes(manifest: Manifest, sizes: Mapping[str, int], plan_nbytes: int | None) -> dict[str, int]:
    """Bytes by kind: ``weights`` (the file of all stages), ``plans`` where there are compiled ones, ``hidden state``
    (one; a generation holds two or three), and the cached residuals by granularity.
    """
    kinds = {"weights": manifest.files[manifest.weights].nbytes}
    if plan_nbytes is not None:
        kinds["plans"] = plan_nbytes
    kinds["hidden_state"] = residual_nbytes(manifest, sizes, "stack")
    return kinds | {f"residuals_{choice}": residual_nbytes(manifest, sizes, choice) for choice in GRANULARITIES}
