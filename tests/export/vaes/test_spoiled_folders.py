"""Folders of VAEs that are damaged, incomplete or of another kind: each is refused, with the folder and the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adacache_engines.errors import AdaCacheError, CheckpointError, InputError
from adacache_export.vaes.registry import open_vae
from tests.helpers.tiny_models.vae_bundle import LATENTS, set_config, set_weights

Table = dict[str, tuple[Callable[[Path], object], type[AdaCacheError], str]]
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
ATTENTION = "decoder.mid_block.attentions.0."


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of a checkpoint was run",))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"decoder.conv_in.weight": Evil()}, folder / "diffusion_pytorch_model.bin")


def add(name: str) -> Callable[[Path], None]:
    return lambda folder: set_weights(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))


KL_CONV = "decoder.conv_in.weight"
AUTOENCODER_KL: Table = {
    "no folder": (shutil.rmtree, CheckpointError, r"no config\.json; expected the folder of a VAE"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), CheckpointError, r"no config\.json"),
    "damaged config": (lambda folder: (folder / CONFIG).write_text("{"), CheckpointError, "not valid JSON"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), CheckpointError, "no weights"),
    "pickled code": (pickled, CheckpointError, "needs code to be run"),
    "missing": (
        lambda folder: set_weights(folder, lambda tensors: tensors.pop(KL_CONV)),
        CheckpointError,
        rf"(?s)1 tensor missing.*vae\.{KL_CONV}, expected \(8, 4, 3, 3\)",
    ),
    "of another shape": (
        lambda folder: set_weights(folder, lambda tensors: tensors.update({KL_CONV: torch.zeros(8, 4, 1, 1)})),
        CheckpointError,
        rf"vae\.{KL_CONV} is \(8, 4, 1, 1\), expected \(8, 4, 3, 3\)",
    ),
    "attention of another shape": (
        lambda folder: set_weights(
            folder, lambda tensors: tensors.update({f"{ATTENTION}to_q.weight": torch.zeros(8, 8, 3, 3)})
        ),
        CheckpointError,
        r"to_q\.weight is \(8, 8, 3, 3\), expected \(8, 8\)",
    ),
    "unexpected": (add("decoder.more"), CheckpointError, r"(?s)1 tensor unexpected.*vae\.decoder\.more"),
    "NaN": (
        lambda folder: set_weights(folder, lambda tensors: tensors[KL_CONV][0, 0, 0].fill_(torch.nan)),
        CheckpointError,
        f"{KL_CONV} has 3 NaN",
    ),
    "another class": (
        lambda folder: set_config(folder, _class_name="VQModel"),
        CheckpointError,
        "describes VQModel; expected AutoencoderKL",
    ),
    "no class": (lambda folder: set_config(folder, _class_name="absent"), CheckpointError, "describes no class"),
    "Latte's other VAE": (
        lambda folder: set_config(folder, _class_name="AutoencoderKLTemporalDecoder", block_out_channels=[32] * 4),
        CheckpointError,
        r"(?s)missing.*vae\.decoder\.mid_block\.resnets\.0\.temporal_res_block\.norm1\.weight, expected \(32,\)",
    ),
    "Open-Sora-Plan's VAE": (
        lambda folder: set_config(folder, _class_name="CausalVAEModel"),
        InputError,
        "other latent frames to CausalVAEModel than to this model; pass a folder with AutoencoderKL or AutoencoderKLT",
    ),
    "Open-Sora's VAE": (
        lambda folder: set_config(folder, _class_name="absent", architectures=["VideoAutoencoderPipeline"]),
        InputError,
        "other latent frames to VideoAutoencoderPipeline than to this model; pass a folder with AutoencoderKL",
    ),
    "Open-Sora's VAE by another name": (
        lambda folder: set_config(folder, _class_name="absent", model_type="OpenSoraVAE_V1_2"),
        InputError,
        "other latent frames to OpenSoraVAE_V1_2 than to this model",
    ),
    "another activation": (lambda folder: set_config(folder, act_fn="tanh"), CheckpointError, "act_fn"),
    "several faults": (
        lambda folder: set_config(folder, layers_per_block=0, latents_mean=[0.0] * 4),
        CheckpointError,
        "(?s)layers_per_block.*latents_mean",
    ),
    "other blocks": (
        lambda folder: set_config(folder, up_block_types=["AttnUpDecoderBlock2D"] * 4),
        CheckpointError,
        "up_block_types",
    ),
    "fewer blocks": (
        lambda folder: set_config(folder, up_block_types=["UpDecoderBlock2D"]),
        CheckpointError,
        "as many as block_out_channels",
    ),
    "groups": (lambda folder: set_config(folder, norm_num_groups=3), CheckpointError, "multiples of norm_num_groups"),
    "channels": (
        lambda folder: set_config(folder, latent_channels=16),
        InputError,
        "decodes latents of 16 channels, 8 pixels a row; the model makes 4 channels, 8 pixels a row",
    ),
    "factor": (
        lambda folder: set_config(folder, block_out_channels=[8] * 3, up_block_types=["UpDecoderBlock2D"] * 3),
        InputError,
        "decodes latents of 4 channels, 4 pixels a row",
    ),
}

TEMPORAL, SPATIAL = "temporal_vae.", "spatial_vae.module."
OS_CONV = f"{TEMPORAL}decoder.conv1.conv.weight"
OPEN_SORA: Table = {
    "missing in both halves": (
        lambda folder: set_weights(
            folder,
            lambda tensors: [tensors.pop(name) for name in ("scale", OS_CONV, f"{SPATIAL}quant_conv.bias")],
        ),
        CheckpointError,
        rf"(?s)3 tensors missing.*vae\.scale, expected \(1, 4, 1, 1, 1\).*vae\.{OS_CONV}, expected \(16, 4, 3, 3, 3\)",
    ),
    "only the spatial half": (
        lambda folder: set_weights(
            folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(TEMPORAL)]
        ),
        CheckpointError,
        r"(?s)267 tensors missing.*temporal_vae\.decoder\.conv1\.conv\.weight, expected \(512, 4, 3, 3, 3\)",
    ),
    "another shape": (
        lambda folder: set_weights(folder, lambda tensors: tensors.update({OS_CONV: torch.zeros(16, 4, 1, 3, 3)})),
        CheckpointError,
        rf"{OS_CONV} is \(16, 4, 1, 3, 3\), expected \(16, 4, 3, 3, 3\)",
    ),
    "unexpected": (
        lambda folder: set_weights(folder, lambda tensors: tensors.update({"disc.weight": torch.zeros(2)})),
        CheckpointError,
        r"(?s)1 tensor unexpected.*vae\.disc\.weight",
    ),
    "NaN": (
        lambda folder: set_weights(folder, lambda tensors: tensors["shift"].fill_(torch.nan)),
        CheckpointError,
        "vae.shift has 4 NaN",
    ),
    "usual groups": (
        lambda folder: set_config(folder, vae_temporal={}, vae_2d={}),
        CheckpointError,
        "vae_2d.norm_num_groups 32: expected a divisor of the channels 8, 8; vae_temporal.num_groups 32: .* 16",
    ),
    "other chunks": (lambda folder: set_config(folder, micro_frame_size=33), CheckpointError, "micro_frame_size"),
    "another class": (
        lambda folder: set_config(folder, architectures=["AutoencoderKL"]),
        InputError,
        "other latent frames to AutoencoderKL than to this model; pass a folder with OpenSoraVAE_V1_2",
    ),
    "three halvings": (
        lambda folder: set_weights(
            folder,
            lambda tensors: tensors.update(
                {f"{TEMPORAL}encoder.conv_blocks.0.conv.weight": torch.zeros(4, 4, 3, 3, 3)}
            ),
        ),
        CheckpointError,
        "3 levels of the temporal VAE halve the frames: expected 2",
    ),
}

CAUSAL_CONV = "decoder.conv_in.conv.weight"
CAUSAL: Table = {
    "missing": (
        lambda folder: set_weights(folder, lambda tensors: tensors.pop(CAUSAL_CONV)),
        CheckpointError,
        rf"(?s)1 tensor missing.*vae\.{CAUSAL_CONV}, expected \(32, 4, 3, 3, 3\)",
    ),
    "unexpected": (
        lambda folder: set_weights(folder, lambda tensors: tensors.update({"decoder.more": torch.zeros(2)})),
        CheckpointError,
        r"(?s)1 tensor unexpected.*vae\.decoder\.more",
    ),
    "NaN": (
        lambda folder: set_weights(folder, lambda tensors: tensors[CAUSAL_CONV][0, 0, 0, 0].fill_(torch.nan)),
        CheckpointError,
        f"{CAUSAL_CONV} has 3 NaN",
    ),
    "several faults": (
        lambda folder: set_config(folder, decoder_attention="LinearAttention", q_conv="Conv2d"),
        CheckpointError,
        "(?s)q_conv.*decoder_attention",
    ),
    "other frames": (
        lambda folder: set_config(folder, decoder_temporal_upsample=["", "TimeUpsample2x"]),
        CheckpointError,
        "decoder_temporal_upsample makes 2 frames of a latent frame: expected 4",
    ),
    "channels": (
        lambda folder: set_config(folder, embed_dim=8),
        InputError,
        "decodes latents of 8 channels, 2 pixels a row; the model makes 4 channels, 2 pixels a row",
    ),
    "another VAE": (
        lambda folder: set_config(folder, _class_name="AutoencoderKL"),
        InputError,
        "other latent frames to AutoencoderKL than to this model; pass a folder with CausalVAEModel",
    ),
}

TD_CONV = "decoder.time_conv_out.weight"
TEMPORAL_DECODER: Table = {
    "missing": (
        lambda folder: set_weights(folder, lambda tensors: tensors.pop(TD_CONV)),
        CheckpointError,
        rf"(?s)1 tensor missing.*vae\.{TD_CONV}, expected \(3, 3, 3, 1, 1\)",
    ),
    "NaN": (
        lambda folder: set_weights(folder, lambda tensors: tensors[TD_CONV][0, 0].fill_(torch.nan)),
        CheckpointError,
        f"{TD_CONV} has 3 NaN",
    ),
    "several faults": (
        lambda folder: set_config(folder, layers_per_block=0, out_channels=4),
        CheckpointError,
        "(?s)out_channels.*layers_per_block",
    ),
    "factor": (
        lambda folder: set_config(folder, block_out_channels=[32]),
        InputError,
        "decodes latents of 4 channels, 1 pixels a row; the model makes 4 channels, 2 pixels a row",
    ),
}

TABLES = {
    "stable-diffusion": AUTOENCODER_KL,
    "open-sora": OPEN_SORA,
    "causal": CAUSAL,
    "temporal-decoder": TEMPORAL_DECODER,
}


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, table in TABLES.items() for case in table])
def test_spoiled_folder(
    kind: str, case: str, vae_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, error, message = TABLES[kind][case]
    folder = Path(shutil.copytree(vae_of(kind), tmp_path / "vae"))
    spoil(folder)
    with pytest.raises(error, match=message) as raised:
        open_vae(folder, LATENTS[kind])
    assert str(folder) in str(raised.value)
    assert "was run" not in capsys.readouterr().out
