"""What guidance leads away from, and how captions reach a model without a text mask: Latte and Open-Sora-Plan."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.commands.run import main as run
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Captions, Request
from adacache_runtime.text.prompts import tokenize
from tests.helpers.originals.reference import DATA, arrays
from tests.helpers.originals.reference import request as open_sora_request

INPUTS = arrays(DATA / "latte" / "inputs.npz")
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def latte(latte_bundle: Callable[[str], Path]) -> Pipeline:
    return Pipeline.open(latte_bundle("latte"))


@pytest.fixture(scope="module")
def whole(decoding_folder: Path) -> Pipeline:
    return Pipeline.open(decoding_folder)


def two(mask: bool = True) -> Captions:
    """Two prompts, of 6 and of 3 tokens, with negative ones that are none of them."""
    given = INPUTS["mask"].astype(bool)
    return Captions(INPUTS["text"], given if mask else np.ones_like(given), INPUTS["text"][::-1] * 0.5)


def second(captions: Captions) -> Captions:
    assert captions.negative is not None
    return Captions(captions.embeddings[1:], captions.mask[1:], captions.negative[1:])


def generate(pipeline: Pipeline, captions: Captions | None, **options: object) -> Floats:
    latents = INPUTS["latents"][-len(captions.embeddings) :] if captions else INPUTS["latents"][1:]
    asked = {"captions": captions, "latents": latents, "steps": 3, **options}
    return pipeline.generate(Request(**asked)).latents  # type: ignore[arg-type]


def test_captions_of_one_prompt_are_cut_to_its_tokens_with_the_negative_ones(latte: Pipeline) -> None:
    given = second(two())
    count = int(given.mask.sum())
    assert 0 < count < given.mask.shape[1]
    assert given.negative is not None
    cut = Captions(given.embeddings[:, :count], given.mask[:, :count], given.negative[:, :count])
    np.testing.assert_array_equal(generate(latte, given), generate(latte, cut))
    longer = replace(given, negative=np.concatenate([given.negative, given.negative], axis=1))
    np.testing.assert_array_equal(generate(latte, longer), generate(latte, cut))
    other = replace(cut, negative=cut.negative[:, ::-1] + 1)  # type: ignore[index]
    assert not np.array_equal(generate(latte, other), generate(latte, cut))


def test_several_prompts_are_attended_in_full_with_zeros_for_padding(latte: Pipeline) -> None:
    given = two()
    zeros = Captions(given.embeddings * given.mask[:, :, None], np.ones_like(given.mask), given.negative)
    together = generate(latte, given)
    np.testing.assert_array_equal(together, generate(latte, zeros))
    assert not np.allclose(together, generate(latte, two(mask=False)))
    assert not np.allclose(together[1:], generate(latte, second(given)), atol=1e-3)  # alone it is cut


def test_without_guidance_the_negative_prompt_does_not_count(latte: Pipeline) -> None:
    given = two()
    other = replace(given, negative=np.zeros_like(given.embeddings))
    one, two_ = (generate(latte, captions, guidance=1.0) for captions in (given, other))
    np.testing.assert_allclose(one, two_, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative": None}, r"no text encoder.*array negative"),
        ({"negative": np.zeros((1, 6, 24), np.float32)}, r"shape \(1, 6, 24\); expected \(2, length, 24\)"),
        ({"negative": np.zeros((2, 6, 8), np.float32)}, r"shape \(2, 6, 8\)"),
        ({"negative": np.zeros((2, 4, 24), np.float32)}, r"length 4.*6 tokens"),
        ({"negative": np.full((2, 6, 24), np.nan, np.float32)}, r"NaN"),
    ],
)
def test_negative_embeddings_that_cannot_be(latte: Pipeline, change: dict[str, Floats], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(latte, replace(two(), **change))


def test_a_model_with_a_caption_of_its_own_takes_none(pipeline: Pipeline) -> None:
    asked = open_sora_request()
    assert asked.captions is not None
    for refused in (
        replace(asked, negative_prompts=("blurry",)),
        replace(asked, captions=replace(asked.captions, negative=asked.captions.embeddings)),
    ):
        with pytest.raises(InputError, match=r"open-sora-1\.2 takes no negative prompt"):
            pipeline.generate(refused)


def test_negative_prompts_that_do_not_fit(whole: Pipeline) -> None:
    with pytest.raises(InputError, match="3 negative prompts for 2 prompts"):
        generate(whole, None, prompts=("a", "b"), latents=INPUTS["latents"], negative_prompts=("x", "y", "z"))
    with pytest.raises(InputError, match="not both"):
        generate(whole, two(), negative_prompts=("ugly",))


def states(pipeline: Pipeline, folder: Path, prompts: list[str]) -> tuple[Floats, NDArray[np.bool_]]:
    """By transformers."""
    tokens = tokenize(pipeline.bundle, prompts)
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        given = {"input_ids": torch.from_numpy(tokens.ids), "attention_mask": torch.from_numpy(tokens.mask).long()}
        return model(**given).last_hidden_state.numpy(), tokens.mask


@pytest.mark.parametrize("negative", ["", "ugly square"])
def test_prompts_in_words_are_their_embeddings(whole: Pipeline, t5_folder: Path, negative: str) -> None:
    """Also the states behind the few tokens of the negative prompt, which T5 gives for padding."""
    embeddings, mask = states(whole, t5_folder, ["a red circle moves left"])
    assert (embeddings.shape[1], int(mask.sum())) == (120, 6)
    away, _ = states(whole, t5_folder, [negative])
    expected = generate(whole, Captions(embeddings, mask, away))
    words = {"prompts": ("A red circle  moves left",), "negative_prompts": (negative,) if negative else ()}
    got = generate(whole, None, **words)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    other = generate(whole, None, **words | {"negative_prompts": ("fast",)})
    assert np.abs(other - expected).max() > 10 * np.abs(got - expected).max()


def test_one_negative_prompt_serves_all(whole: Pipeline) -> None:
    asked = {"prompts": ("a red circle", "a blue square"), "latents": INPUTS["latents"]}
    np.testing.assert_array_equal(
        generate(whole, None, **asked, negative_prompts=("ugly",)),
        generate(whole, None, **asked, negative_prompts=("ugly", "ugly")),
    )


@pytest.mark.slow
def test_half_precision_is_near_full_precision(latte: Pipeline, half_latte: Path) -> None:
    full, half = (generate(pipeline, second(two()), steps=10) for pipeline in (latte, Pipeline.open(half_latte)))
    assert 0 < np.linalg.norm(half - full) < 5e-3 * np.linalg.norm(full)


def test_from_prompt_to_video(decoding_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = [str(decoding_folder), "--prompt", "a red circle", "--steps", "2", "-o"]
    for name, more in (("plain", []), ("away", ["--negative-prompt", "ugly square"])):
        assert run([*usual, str(tmp_path / f"{name}.npz"), *more]) == 0
    plain, away = (arrays(tmp_path / f"{name}.npz")["frames"] for name in ("plain", "away"))
    assert plain.shape == away.shape == (5, 64, 64, 3)
    assert not np.array_equal(plain, away)
    assert run([*usual, str(tmp_path / "x.mp4"), "--aesthetic", "6"]) == 1
    assert "this model was not trained to read that score" in capsys.readouterr().err
