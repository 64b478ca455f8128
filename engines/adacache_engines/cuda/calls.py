"""The status of a CUDA call as an error of this project."""

from typing import Any

from adacache_engines.errors import EngineError


def checked(api: Any, result: tuple[Any, ...], doing: str) -> Any:
    """Return the value of a CUDA call, which returns (status,) or (status, value).

    Raises:
        EngineError: the status is not success.
    """
    status, *value = result
    if status != api.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA failed {doing}: {getattr(status, 'name', status)}")
    return value[0] if value else None
