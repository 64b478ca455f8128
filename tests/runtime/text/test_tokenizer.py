import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from adacache_engines.errors import BundleError, InputError
from adacache_runtime.text.tokenizer import Tokenizer

WORDS = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁circle", "▁", "s", "e"]
PAD, END, UNKNOWN, A, RED, CIRCLE = range(6)


def tokenizer_json(**changes) -> bytes:
    tokenizer = tokenizers.Tokenizer(models.Unigram([(word, -1.0) for word in WORDS], unk_id=UNKNOWN))
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return json.dumps(json.loads(tokenizer.to_str()) | changes).encode()


@pytest.fixture(scope="module")
def tokenize() -> Tokenizer:
    return Tokenizer(tokenizer_json(), 5)


def test_ends_and_pads(tokenize):
    ids, mask = tokenize(["a red circle", "", "a"])
    assert ids.dtype == np.int64
    assert mask.dtype == np.bool_
    assert ids.tolist() == [[A, RED, CIRCLE, END, PAD], [END, PAD, PAD, PAD, PAD], [A, END, PAD, PAD, PAD]]
    assert (mask == (ids != PAD)).all()


def test_truncation_keeps_the_end(tokenize):
    ids, mask = tokenize(["a red circle a red circle", "a red circle red"])
    assert ids.tolist() == [[A, RED, CIRCLE, A, END], [A, RED, CIRCLE, RED, END]]
    assert mask.all()


def test_no_prompts(tokenize):
    ids, mask = tokenize([])
    assert ids.shape == mask.shape == (0, 5)


def test_length_comes_from_the_caller_and_padding_from_the_file():
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 2, "pad_type_id": 0, "pad_token": "<unk>"}
    padding["pad_to_multiple_of"] = None
    truncation = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    tokenize = Tokenizer(tokenizer_json(padding=padding, truncation=truncation), 4)
    assert tokenize(["a red"]).ids.tolist() == [[A, RED, END, UNKNOWN]]


def test_vocabulary_is_above_every_id():
    assert Tokenizer(tokenizer_json(), 5).vocabulary == len(WORDS)


def test_open(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json())
    assert Tokenizer.open(path, 3)(["a"]).ids.tolist() == [[A, END, PAD]]


def test_missing_file(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere\.json: No such file"):
        Tokenizer.open(tmp_path / "nowhere.json", 3)


CORRUPT = {
    "empty": b"",
    "not JSON": b"\xff\xfe",
    "not an object": b"[]",
    "no model": b"{}",
    "cut": tokenizer_json()[:-40],
    "unknown model": tokenizer_json(model={"type": "Other"}),
    "the library panics": tokenizer_json(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "no end of sequence": tokenizer_json(post_processor=None),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_file(case, tmp_path, capfd):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(CORRUPT[case])
    with pytest.raises(BundleError, match=r"tokenizer\.json") as raised:
        Tokenizer.open(path, 3)
    assert str(path) in str(raised.value)
    capfd.readouterr()  # the panic's own report


@pytest.mark.parametrize("length", [-1, 0, 1])
def test_no_room_for_text(length):
    with pytest.raises(InputError, match="at least 2"):
        Tokenizer(tokenizer_json(), length)


@pytest.mark.parametrize("prompt", ["\ud800", None, 3])
def test_what_is_no_text(tokenize, prompt):
    with pytest.raises(InputError, match="prompt 1 "):
        tokenize(["a", prompt])


def test_one_prompt_is_not_a_list_of_letters(tokenize):
    with pytest.raises(InputError, match="list"):
        tokenize("a red circle")


@given(st.lists(st.text(max_size=20), max_size=3))
@settings(max_examples=50)
def test_any_text(tokenize, prompts):
    ids, mask = tokenize(prompts)
    assert ids.shape == mask.shape == (len(prompts), 5)
    for row, used in zip(ids, mask, strict=True):
        count = int(used.sum())
        assert used[:count].all()
        assert row[count - 1] == END


def test_threads_share_it(tokenize):
    prompts = [["a red circle"], ["a"], ["circle " * 9]] * 20
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(tokenize, prompts))
    for prompt, tokens in zip(prompts, shared, strict=True):
        assert (tokens.ids == tokenize(prompt).ids).all()
