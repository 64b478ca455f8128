"""What a kind of VAE gives to export."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from adacache_engines.errors import CheckpointError
from adacache_engines.latent_space import Windows
from adacache_export.stages import Stage

PREFIX = "vae."  # keeps the VAE's weights apart from the model's in one weights file

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class Coding:
    """A VAE of settled sizes.

    Attributes:
        channels: of the latents.
        spatial_factor: pixels of a latent row or column.
        decoding, encoding: stages as :class:`adacache_engines.latent_space.LatentSpace` describes their graphs, with
            modules on the meta device, and parameters under ``PREFIX`` and their names in the VAE's folder. All are
            exported in float32 whatever the model's precision: activations overflow float16.
        windows, images, tile, tiles_windows: as of ``LatentSpace``.
    """

    channels: int
    spatial_factor: int
    decoding: tuple[Stage, ...]
    encoding: tuple[Stage, ...] = ()
    windows: Windows = field(default_factory=Windows)
    images: int = 1
    tile: int | None = None
    tiles_windows: bool = False


def settled(kind: type[Config], fields: Mapping[str, Any]) -> Config:
    """
    Raises:
        CheckpointError: lists all fields that are missing or not supported.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise CheckpointError("; ".join(problems)) from error
