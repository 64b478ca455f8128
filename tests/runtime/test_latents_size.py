"""Given latents and the size that is asked for beside them, which is a condition of some models and of others not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import LatentSpace, StageEntry
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.settled import settle
from tests.helpers.model.fake_model import SIZE, WIDTH, graph, manifest, request, write_bundle

FRAMES, HEIGHT, WIDE = SIZE[0], 2 * SIZE[1], 4 * (SIZE[2] - 1)  # of a video; latents have half as many rows and columns


def without_size(entry: StageEntry) -> StageEntry:
    inputs = tuple(spec for spec in entry.graph.inputs if spec.name not in ("height", "width"))
    return entry.model_copy(update={"graph": graph(entry.graph.name, inputs, entry.graph.outputs)})


def bundle_of(folder: Path, reads_size: bool) -> Bundle:
    """Write a bundle of a model whose patches are one row high and two columns wide."""
    plain = manifest()
    latent = LatentSpace(channels=WIDTH, patch=(1, 1, 2), spatial_factor=2, decoder="none", whole_patches=True)
    stages = plain.stages if reads_size else tuple(map(without_size, plain.stages))
    return write_bundle(folder, latent=latent, stages=stages)


def shape_of(bundle: Bundle, *sides: int, **size: int | None) -> tuple[int, ...]:
    """Return the shape with which a request for latents of some sides is settled."""
    usual: dict[str, Any] = {"frames": FRAMES, "height": HEIGHT, "width": WIDE}
    latents = np.zeros((2, WIDTH, *sides), np.float32)
    return settle(bundle, request(latents=latents, **{**usual, **size})).latent_shape


def test_latents_have_the_size_that_is_asked_for(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", reads_size=False)
    right = (FRAMES, HEIGHT // 2, WIDE // 2)
    assert shape_of(bundle, *right) == (2, WIDTH, *right)
    for axis in range(3):
        wrong = [side + 2 * (index == axis) for index, side in enumerate(right)]
        with pytest.raises(InputError, match=r"expected \(2, 3, 4, 2, 8\)"):
            shape_of(bundle, *wrong)


def test_a_size_that_is_not_asked_for_is_that_of_the_latents(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", reads_size=False)
    assert shape_of(bundle, FRAMES + 1, HEIGHT, 2, frames=None, height=None, width=None)[2:] == (FRAMES + 1, HEIGHT, 2)
    with pytest.raises(InputError, match=r"expected \(2, 3, 5, 2, 2\)"):
        shape_of(bundle, FRAMES + 1, HEIGHT, 2, frames=None, width=None)


def test_a_size_that_the_model_reads_need_not_be_that_of_the_latents(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", reads_size=True)
    assert shape_of(bundle, FRAMES + 1, 3, 2)[2:] == (FRAMES + 1, 3, 2)


@pytest.mark.parametrize(("height", "width"), [(HEIGHT + 1, WIDE), (HEIGHT, WIDE + 2)])
@pytest.mark.parametrize("given", [True, False])
def test_a_patch_has_a_height_and_a_width(tmp_path: Path, height: int, width: int, given: bool) -> None:
    bundle = bundle_of(tmp_path / "bundle", reads_size=False)
    with pytest.raises(OutOfRangeError, match="choose multiples of 4 in width and of 2 in height"):
        if given:
            shape_of(bundle, FRAMES, HEIGHT // 2, WIDE // 2, height=height, width=width)
        else:
            settle(bundle, request(height=height, width=width))
