"""Folders of a small T5 with a tokenizer."""

import logging
from pathlib import Path

import pytest
import transformers

from tests.helpers.tiny_models.t5 import random_t5, tokenizer_in, write_spiece


@pytest.fixture(autouse=True)
def no_log():
    """Pytest collects all that torch logs while tracing, which takes longer than tracing."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def gated() -> transformers.T5EncoderModel:
    return random_t5(transformers.T5EncoderModel, "gated-gelu")


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> Path:
    return write_spiece(tmp_path_factory.mktemp("spiece"))


@pytest.fixture(scope="module")
def tokenizer_json(spiece) -> str:
    return tokenizer_in(spiece.parent).backend_tokenizer.to_str()


@pytest.fixture
def folder(tmp_path, gated, tokenizer_json) -> Path:
    """A complete folder to spoil."""
    gated.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    return tmp_path
