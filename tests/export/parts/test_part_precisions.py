"""Text encoders and VAEs in half precision, and compiled: what stays float32, and that all plans build."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderKL

from adacache_engines.bundle.files import open_bundle
from adacache_engines.bundle.manifest import DTYPES, Graph, TextRule
from adacache_engines.errors import ExportError
from adacache_export.commands.export import main as export
from adacache_export.parts.text_encoder import add_encoder
from adacache_export.phases import Progress
from adacache_export.stages import Stage, run_stages
from adacache_export.text_encoders.registry import TextEncoder, open_text_encoder
from adacache_export.vaes.precision import NARROW, TOLERANCE
from adacache_export.vaes.registry import Vae, open_vae
from adacache_export.writing.weights_file import TORCH_DTYPES
from tests.helpers.tiny_models.vae_bundle import LATENTS, LATTE_LATENT, set_weights, write_vae_bundle

SIZES = {"images": 2, "frames": 3, "pixel_frames": 9, "height": 4, "width": 4, "pixel_height": 8, "pixel_width": 8}


def with_weights(stage: Stage, part: Vae | TextEncoder, wide: bool = False) -> Stage:
    """As exported; or the same in float32."""
    tensors, dtypes = part.checkpoint.tensors, part.dtypes()
    narrow = {name: tensors[key].to(TORCH_DTYPES[dtypes[key]]) for name, key in stage.keys().items()}
    weights = {name: value.float() if wide else value for name, value in narrow.items()}
    stage.module.load_state_dict(weights, assign=True)
    return stage


def outputs(stage: Stage, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    result = stage.module(given)
    return result if isinstance(result, tuple) else (result,)


def dtypes_outside(graph: Graph) -> set[str]:
    return {spec.dtype for spec in (*graph.inputs, *graph.outputs)}


# VAEs


@pytest.mark.parametrize("kind", LATENTS)
@torch.no_grad()
def test_convolutions_and_products_are_narrow_and_nothing_else(kind: str, vae_of: Callable[[str], Path]) -> None:
    vae = open_vae(vae_of(kind), LATENTS[kind], "bf16")
    generator = torch.Generator().manual_seed(0)
    for stage in (*vae.coding.decoding, *vae.coding.encoding):
        seen: set[tuple[bool, torch.dtype]] = set()
        for module in with_weights(stage, vae).module.modules():
            if isinstance(module, (*NARROW, torch.nn.GroupNorm)):  # after the hooks that cast
                module.register_forward_pre_hook(
                    lambda module, given, seen=seen: seen.add((isinstance(module, NARROW), given[0].dtype))
                )
        x = torch.randn(stage.inputs[0].shape(SIZES), generator=generator)
        narrow = outputs(stage, x)
        assert seen == {(True, torch.bfloat16), (False, torch.float32)}
        for one, other in zip(narrow, outputs(with_weights(stage, vae, wide=True), x), strict=True):
            assert one.dtype == torch.float32
            worst = float((one - other).abs().max() / max(1, other.square().mean().sqrt()))
            assert 1e-4 < worst < TOLERANCE
    wide = {key.rpartition(".")[0] for key, dtype in vae.dtypes().items() if dtype == "float32"}
    assert all("norm" in name or name == "vae" or "time_mixer" in name or "time_upsample" in name for name in wide)


@pytest.mark.slow
def test_engine_of_a_narrow_vae(tmp_path: Path) -> None:
    """Only its weights say that the graph is bfloat16 inside; what is recorded is how far that is from float32."""
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4).save_pretrained(tmp_path / "vae")
    latent = LATTE_LATENT.model_copy(update={"spatial_factor": 1})
    vae = open_vae(tmp_path / "vae", latent, "bf16")
    write_vae_bundle(tmp_path / "bundle", tmp_path / "vae", latent, "bf16")
    (graph,) = open_bundle(tmp_path / "bundle").manifest.vae_graphs()
    assert dtypes_outside(graph) == {"float32"}
    assert graph.weight_dtypes == ("bfloat16", "float32")
    assert graph.weights_nbytes
    assert graph.weights_nbytes < 0.6 * 4 * sum(tensor.numel() for tensor in vae.checkpoint.tensors.values())
    assert graph.check
    assert 1e-3 < graph.check.error < TOLERANCE


def test_a_vae_in_float16_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export(["checkpoint", "--vae-precision", "fp16"])
    told = " ".join(capsys.readouterr().err.split())
    assert "values beyond 65504, which fp16 cannot hold; choose bf16 or fp32" in told


# text encoders


ENCODERS = {"t5": (transformers.T5EncoderModel, transformers.T5Config)}
ENCODERS["umt5"] = (transformers.UMT5EncoderModel, transformers.UMT5Config)


@pytest.mark.parametrize(("kind", "proj"), [("t5", "relu"), ("t5", "gated-gelu"), ("umt5", "gated-gelu")])
@torch.no_grad()
def test_float16_text_encoder_where_float16_would_overflow(
    kind: str, proj: str, t5_folder: Path, tmp_path: Path
) -> None:
    """As in the published weights, the feed-forward goes beyond float16 and the residual with it."""
    torch.manual_seed(0)
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "feed_forward_proj": proj}
    of_kind, configure = ENCODERS[kind]
    model = of_kind(configure(vocab_size=16, **sizes)).eval()
    for name, parameter in model.named_parameters():
        if "wo" in name:
            parameter.mul_(1e5 / parameter.norm())
        elif "DenseReluDense" in name:
            parameter.mul_(1e2)
    model.save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").symlink_to(t5_folder.parent / "tokenizer")
    tokens = torch.tensor([[4, 9, 7, 1, 0], [5, 1, 0, 0, 0]])
    mask = tokens > 0
    expected = model(tokens, mask).last_hidden_state
    seen: list[float] = []
    for block in model.encoder.block:
        block.register_forward_hook(lambda _block, _given, result: seen.append(float(result[0].abs().max())))
    model(tokens, mask)
    assert max(seen) > torch.finfo(torch.float16).max

    encoder = open_text_encoder(tmp_path / "text_encoder", DTYPES["fp16"])
    named = {"tokens": tokens, "mask": mask}
    for stage in encoder.stages:
        named = run_stages([with_weights(stage, encoder)], named)
        hidden = named.get("hidden")
        assert hidden is not None
        assert hidden.dtype == torch.float32
    assert (named["captions"] - expected).abs().max() < 1e-2
    assert set(encoder.dtypes().values()) == {"float16", "float32"}


def test_a_text_encoder_with_weights_that_float16_cannot_hold(t5_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(t5_folder.parent, tmp_path / "t5")
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    set_weights(tmp_path / "t5" / "text_encoder", lambda tensors: tensors[name][0].fill_(7e4))
    rule = TextRule(max_length=60, width=24, cleaning="html-and-captions")
    encoder = open_text_encoder(tmp_path / "t5" / "text_encoder", "float16")
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ExportError, match=rf"{name} has values beyond 65504, .*: use bf16 or fp32"):
        add_encoder(tmp_path / "bundle", encoder, rule, "fp16", Progress())
    assert not list(tmp_path.glob("bundle/*"))
