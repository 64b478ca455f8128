"""Small T5 encoders with random weights, and what transformers makes of the same tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers

from adacache_export.stages import run_stages
from adacache_export.text_encoders.registry import TextEncoder

VOCABULARY = 64
SIZES = {"vocab_size": VOCABULARY, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
WORDS = "a red blue green circle square moves left right fast slow stays still café 100% it's".split()  # noqa: SIM905
TOLERANCE = 2e-5


def random_t5(kind: type[transformers.PreTrainedModel], proj: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = kind(transformers.T5Config(**SIZES, feed_forward_proj=proj, decoder_start_token_id=0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # larger than T5's own, so that each part counts
    return model


def write_spiece(folder: Path) -> Path:
    """Write ``spiece.model``, a tokenizer of ``WORDS``, into a folder; return its path."""
    generator = np.random.default_rng(0)
    (folder / "text").write_text("\n".join(" ".join(generator.choice(WORDS, 6)) for _ in range(200)), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder / "spiece.model"


def tokenizer_in(folder: Path) -> transformers.T5TokenizerFast:
    """Return the tokenizer whose ``spiece.model`` is in a folder, without sentinels."""
    return transformers.T5TokenizerFast.from_pretrained(str(folder), extra_ids=0)


def inputs(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(VOCABULARY, (batch, length), generator=generator)
    used = torch.randint(1, length + 1, (batch, 1), generator=generator)
    used[0] = length
    return tokens, torch.arange(length) < used


def reference(model: transformers.T5EncoderModel, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state


def loaded(encoder: TextEncoder) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the encoder as a function from tokens and mask to captions."""

    def states(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        named = {"tokens": tokens, "mask": mask}
        for stage in encoder.stages:
            tensors = {name: encoder.checkpoint.tensors[key] for name, key in stage.keys().items()}
            stage.module.load_state_dict(tensors, assign=True)
            named = run_stages([stage], named)
        return named["captions"]

    return states


def all_keys(encoder: TextEncoder) -> set[str]:
    return {key for stage in encoder.stages for key in stage.keys().values()}
