"""The check of an order: what it costs, and whom it blames."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.files import Bundle
from adacache_serve.orders.check import FieldError, check
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import write_model
from tests.helpers.serving.work_counts import NOISE, SETTLED, TOKENISED, counted

SETTINGS = Settings(Path())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_model(tmp_path_factory.mktemp("models") / "fake", conditioned=True)


def test_a_check_draws_no_noise_and_allocates_nothing_large(bundle: Bundle) -> None:
    profiles = {"default": dict.fromkeys(("samples", "text", "frames", "height", "width"), (1, 512))}
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"profiles": profiles}))
    order = CreateVideo(prompt="boat", size="512x512", frames=200)
    check(CreateVideo(prompt="boat"), bundle, SETTINGS)  # imports and caches
    tracemalloc.start()
    try:
        settled = check(order, bundle, SETTINGS)
        _, peak_nbytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    _, channels, frames, height, width = settled.latent_shape
    latents_nbytes = 4 * channels * frames * height * width
    assert latents_nbytes > 10 * 2**20
    assert peak_nbytes < 2**20


def test_an_order_is_settled_again_only_to_find_the_field_to_blame(bundle: Bundle) -> None:
    words: list[str] = []
    restore = counted(words.append)
    try:
        check(CreateVideo(prompt="boat", image_at=-1), bundle, SETTINGS, image=True)
        assert sorted(words) == [SETTLED, TOKENISED]
        words.clear()
        with pytest.raises(FieldError) as refused:
            check(CreateVideo(prompt="boat", image_at=99), bundle, SETTINGS, image=True)
    finally:
        restore()
    assert refused.value.field == "image_at"
    assert words.count(SETTLED) > 1
    assert NOISE not in words


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"policy": "nobody's"}, "policy"),
        ({"frames": 100_000, "size": "512x512"}, "size"),
        ({"seconds": 1.0, "frames": 4}, "seconds"),
        ({"aspect": "1:1"}, "aspect"),
        ({"sampler": "ddim"}, "sampler"),
        ({"sampler": "heun", "steps": 3, "guidance": 500.0}, "sampler"),
        ({"sampler": "euler", "guidance": 500.0}, "guidance"),
    ],
)
def test_a_refusal_names_the_field(bundle: Bundle, order: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as refused:
        check(CreateVideo(prompt="boat", **order), bundle, SETTINGS)
    assert refused.value.field == field
