"""The choices that an export leaves to its user.

The command line derives its options from these fields, so each has its description here, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adacache_engines.bundle.latent_space import VaePrecision
from adacache_engines.bundle.manifest import ExportGranularity, Precision
from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import BLOCK_INPUT

HELP, METAVAR, FLAG, PARSE = "help", "metavar", "flag", "parse"  # keys of a field's metadata


def option(
    description: str,
    metavar: str | None = None,
    flag: str | None = None,
    parse: Callable[[str], str] | None = None,
) -> Mapping[str, Any]:
    """Return the metadata of a field that is also an option of the command line.

    Args:
        description: description for people.
        metavar: placeholder of the value in the command's help; None = the values that the field's type allows.
        flag: name of the option; None = that of the field.
        parse: function that checks a value and raises InputError; None = the field's type says all.
    """
    return {HELP: description, METAVAR: metavar, FLAG: flag, PARSE: parse}


def check_vae_precision(text: str) -> str:
    """Check the precision of a VAE.

    Raises:
        InputError: it is unknown, or float16.
    """
    if text == "fp16":
        raise InputError("convolutions of a VAE give values beyond 65504, which fp16 cannot hold; choose bf16 or fp32")
    if text not in ("fp32", "bf16"):
        raise InputError(f"{text!r} is unknown; choose bf16 or fp32")
    return text


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """The parts that a bundle gets, with its model or later."""

    text_encoder: Path | None = field(
        default=None,
        metadata=option(
            "T5 or UMT5 in a Hugging Face folder, so that the bundle takes prompts as text; can be added to a finished "
            "bundle",
            "DIR",
        ),
    )
    text_precision: Precision = field(
        default="fp32", metadata=option("precision of the text encoder (default: fp32, as published)")
    )
    image_encoder: Path | None = field(
        default=None,
        metadata=option(
            "CLIP's vision model in a Hugging Face folder, for a model that attends to states of the image that it "
            "starts from; can be added to a finished bundle",
            "DIR",
        ),
    )
    vae: Path | None = field(
        default=None,
        metadata=option(
            "folder of the model's VAE, so that the bundle makes videos and not latents; can be added to a finished "
            "bundle",
            "DIR",
        ),
    )
    signals: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "signal of your own that policies may measure, repeatable: a Signal in a module of the current folder or "
            "an installed one; can be added to a finished bundle, without the checkpoint",
            "MODULE:NAME",
            flag="signal",
        ),
    )
    vae_precision: VaePrecision = field(
        default="fp32",
        metadata=option(
            "precision of the VAE (default: fp32, as published; fp16 overflows)",
            "{fp32,bf16}",
            parse=check_vae_precision,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Options(PartOptions):
    """All choices of the export of a checkpoint."""

    precision: Precision = field(
        default="fp32", metadata=option("precision of weights and matrix products (default: fp32)")
    )
    granularity: ExportGranularity = field(
        default="block", metadata=option("what a stage is: a block, or one of the modules in it (default: block)")
    )
    probes: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "site that policies may measure, repeatable: a residual, such as temporal.N.attn or spatial.N.cross+mlp, "
            f"or for TeaCache {BLOCK_INPUT} (default: the temporal attention of the middle block)",
            "SITE",
            flag="probe",
        ),
    )
    conditioning: bool = field(
        default=False,
        metadata=option(
            "let generations start from an image or a clip, whose frames are kept; models that were trained for it can"
        ),
    )
    family: str | None = field(
        default=None,
        metadata=option("family of the checkpoint (default: the one that its tensors and config.json show)", "NAME"),
    )
    revision: str | None = field(
        default=None,
        metadata=option(
            "branch, tag or commit, where CHECKPOINT is a Hugging Face repository in the local cache (default: main)",
            "NAME",
        ),
    )
    config: Path | None = field(
        default=None,
        metadata=option("config.json of the model (default: the one in the checkpoint's folder)", "FILE.json"),
    )
    weights: str | None = field(
        default=None,
        metadata=option("set of weights, such as ema or model, where a checkpoint has several (default: ema)", "SET"),
    )
    force: bool = field(default=False, metadata=option("replace an existing bundle, or its plans"))
