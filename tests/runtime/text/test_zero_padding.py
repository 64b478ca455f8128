"""Captions of a model that was trained with zeros behind a prompt, and the cleaning of its prompts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import GuidanceRule, TextRule
from adacache_engines.errors import InputError
from adacache_runtime.request import Captions
from adacache_runtime.text.captions import check_captions
from adacache_runtime.text.cleaning import CLEANINGS
from adacache_runtime.text.prompts import branches, read_text
from tests.helpers.model.fake_model import WIDTH, fake_pipeline, functions, request

LENGTH = 7


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_pipeline(
        tmp_path / "bundle",
        functions(),
        text=TextRule(max_length=LENGTH, width=WIDTH, cleaning="repaired", masking="zeros"),
        guidance=GuidanceRule(order=("conditional", "unconditional")),
    )[0].bundle


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("negative_tokens", [2, 6, LENGTH])
def test_states_beyond_the_tokens_are_zeros_and_nothing_is_masked(
    bundle: Bundle, prompts: int, negative_tokens: int
) -> None:
    random = np.random.default_rng(prompts)
    embeddings = random.standard_normal((prompts, 4, WIDTH), np.float32)
    mask = np.ones((prompts, 4), np.bool_)
    mask[-1, 3:] = False
    negative = random.standard_normal((prompts, negative_tokens, WIDTH), np.float32)
    text = read_text(bundle, request(captions=Captions(embeddings, mask, negative)))
    assert text.length == LENGTH
    made = branches(bundle, None, text)  # type: ignore[arg-type]  # no encoder runs
    assert made.embeddings.shape == (2 * prompts, LENGTH, WIDTH)
    assert made.mask.shape == (2 * prompts, LENGTH)
    assert made.mask.all()
    expected = np.zeros_like(made.embeddings)
    expected[:prompts, :4] = embeddings * mask[:, :, None]
    expected[prompts:, :negative_tokens] = negative
    np.testing.assert_array_equal(made.embeddings, expected)


def test_captions_of_one_length_are_taken_as_they_are(bundle: Bundle) -> None:
    """The original's pipeline attends to no more than the embeddings that it is given, and so does the runtime."""
    embeddings = np.random.default_rng(0).standard_normal((2, 4, WIDTH), np.float32)
    text = read_text(bundle, request(captions=Captions(embeddings[:1], np.ones((1, 4), np.bool_), embeddings[1:])))
    assert text.length == 4
    np.testing.assert_array_equal(branches(bundle, None, text).embeddings, embeddings)  # type: ignore[arg-type]


def test_captions_that_are_padded_already_stay_as_they_are(bundle: Bundle) -> None:
    padded = np.zeros((1, LENGTH, WIDTH), np.float32)
    padded[:, :3] = 1
    text = read_text(bundle, request(captions=Captions(padded, np.ones((1, LENGTH), np.bool_), -padded)))
    made = branches(bundle, None, text)  # type: ignore[arg-type]
    np.testing.assert_array_equal(made.embeddings, np.concatenate([padded, -padded]))


@pytest.mark.parametrize("length", [0, LENGTH + 1])
def test_captions_and_their_negatives_are_at_most_as_long_as_the_model_takes(bundle: Bundle, length: int) -> None:
    other, mask = np.zeros((1, length, WIDTH), np.float32), np.ones((1, length), np.bool_)
    right = Captions(np.zeros((1, LENGTH, WIDTH), np.float32), np.ones((1, LENGTH), np.bool_))
    for captions in (replace(right, negative=other), Captions(other, mask, right.embeddings)):
        with pytest.raises(InputError, match=f"embeddings have length {length}; this model takes 1 to {LENGTH}"):
            check_captions(bundle.manifest, captions)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("  A red\tboat,\n\nby day ", "A red boat, by day"),
        ("Ã©tÃ© &amp;amp; l’hiver", "été & l'hiver"),
        ("&lt;b&gt; 100% #12 @me x.png", "<b> 100% #12 @me x.png"),
        ("<b> &amp;amp; c", "<b> & c"),  # ftfy leaves text with tags alone
        ("日本の船 ☃", "日本の船 ☃"),
        ("", ""),
    ],
)
def test_prompts_are_repaired(prompt: str, expected: str) -> None:
    assert CLEANINGS["repaired"](prompt) == expected


def test_the_cleaning_is_diffusers() -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    for prompt in (
        "a\u00a0b\u3000c\x1cd",
        "“quotes” &quot;more&quot;",
        "ﬁne ①",
        "a &amp;lt; b",
        "<a> &amp;lt; b",
        "\ud83d",
        "x\u200by\x00",
    ):
        assert CLEANINGS["repaired"](prompt) == prompt_clean(prompt)
