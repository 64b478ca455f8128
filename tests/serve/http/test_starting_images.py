"""A served model that makes no video without an image: what clients are told, and what they get."""

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from adacache_engines.bundle.files import open_bundle
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.errors import InputError
from adacache_runtime.media.video import to_pixels, write_video
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_serve.http.views import model_of
from adacache_serve.orders.check import check, check_servable, request_of
from adacache_serve.orders.images import image_of_order
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.model import fake_image, fake_model
from tests.helpers.serving.fake_server import functions, served, service, write_model
from tests.helpers.serving.http_jobs import ended

FRAME = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "from-image"
    write_model(folder, **fake_model.starting_from_image(fake_model.manifest()))
    return folder


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server that was warmed up, with an image."""
    with served(service(Settings(tmp_path_factory.mktemp("data")), bundle)) as client:
        yield client


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "a.png"
    write_video(path, FRAME[None], fps=1.0)
    return base64.b64encode(path.read_bytes()).decode()


def test_the_model_says_that_it_needs_an_image(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["image"], model["image_required"]) == (True, True)


def test_an_order_without_an_image_is_refused_by_the_field(client: httpx.Client) -> None:
    refused = client.post("/v1/videos", json={"prompt": "a boat"})
    assert (refused.status_code, refused.json()["field"]) == (422, "image")
    assert "starts from an image" in refused.json()["detail"]


@pytest.mark.parametrize(("change", "field"), [({"image_at": 1}, "image_at"), ({"steps": 10**6}, "steps")])
def test_other_fields_are_blamed_for_what_is_theirs(
    client: httpx.Client, image: str, change: dict[str, int], field: str
) -> None:
    refused = client.post("/v1/videos", json={"prompt": "a boat", "image": image, **change})
    assert (refused.status_code, refused.json()["field"]) == (422, field)


def test_the_video_is_that_of_the_runtime(client: httpx.Client, bundle: Path, image: str, tmp_path: Path) -> None:
    answer = client.post("/v1/videos", json={"prompt": "a boat", "seed": 5, "image": image})
    assert answer.status_code == 202, answer.text
    video = ended(client, answer.json()["id"])
    assert (video["status"], video["error"]) == ("completed", None)
    asked = Request(prompts=("a boat",), seed=5, images=(FRAME,))
    alone = Pipeline(open_bundle(bundle), FakeBackend(functions())).generate(asked)
    write_video(tmp_path / "alone.mp4", to_pixels(alone.latents[0]), 24.0)
    assert client.get(video["content"]).content == (tmp_path / "alone.mp4").read_bytes()


@pytest.mark.parametrize("size", [None, "8x3"])
def test_a_model_that_attends_to_an_image_sees_it_as_it_was_sent(size: str | None, image: str, tmp_path: Path) -> None:
    """The image is stored at the video's size, and beside it what the image encoder sees."""
    changes = fake_image.attending(fake_model.manifest())
    changes["part_weights"] = {**changes["part_weights"], "text_encoder": fake_model.WEIGHTS}
    bundle = write_model(tmp_path / "attending", **changes)
    order = CreateVideo(prompt="a boat", seed=5, image=image, size=size)
    settled = check(order, bundle, Settings(tmp_path), image=True)
    sent = image_of_order(image, settled, bundle)
    pipeline = Pipeline(bundle, FakeBackend({**functions(), **fake_image.ENGINES}))
    made = pipeline.generate(request_of(order, bundle, Settings(tmp_path), sent))
    asked = Request(prompts=("a boat",), seed=5, images=(FRAME,), height=settled.height, width=settled.width)
    np.testing.assert_array_equal(made.latents, pipeline.generate(asked).latents)


def test_a_model_that_attends_to_an_image_is_served_with_its_image_encoder_only(tmp_path: Path) -> None:
    for name, rule in (("whole", fake_image.WITH_ENCODER), ("lacking", fake_image.RULE)):
        changes = fake_image.attending(fake_model.manifest(), rule)
        changes["part_weights"] = {**changes["part_weights"], "text_encoder": fake_model.WEIGHTS}
        bundle = write_model(tmp_path / name, **changes)
        assert model_of(name, bundle).image == (name == "whole")
        if name == "whole":
            check_servable(tmp_path / name, bundle.manifest)
            continue
        with pytest.raises(InputError, match=r"lacking has no image encoder: .* --image-encoder DIR"):
            check_servable(tmp_path / name, bundle.manifest)
