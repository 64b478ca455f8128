"""AutoencoderKLWan of both kinds against diffusers: its modules chunk by chunk, and its engines with tiles."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.errors import CheckpointError, InputError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.stages import Stage
from adacache_export.vaes.precision import TOLERANCE as PRECISION_TOLERANCE
from adacache_export.vaes.registry import Vae, open_vae
from adacache_export.writing.weights_file import TORCH_DTYPES
from adacache_runtime.samplers.update import Floats
from adacache_runtime.vae.decode import decode
from adacache_runtime.vae.encode import drawn, encode
from tests.helpers.tiny_models.vae_bundle import (
    LATTE_LATENT,
    decoded_at_once,
    set_config,
    set_weights,
    write_vae_bundle,
)
from tests.helpers.tiny_models.wan_vae import (
    CHANNELS,
    CONFIGS,
    decoded_by_diffusers,
    encoded_by_diffusers,
    factor,
    latent_space,
    random_wan_vae,
    write_wan_vae,
)

TOLERANCE = 1e-5
SIZE = (3, 5)  # latent rows and columns
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(kind: str) -> AutoencoderKLWan:
    return random_wan_vae(kind)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random VAE, which must not be changed."""
    made = tmp_path_factory.mktemp("vae") / "vae"
    write_wan_vae(made, kind)
    return made


@pytest.fixture(scope="module")
def vae(kind: str, folder: Path) -> Vae:
    return open_vae(folder, latent_space(kind))


def noise(*shape: int) -> Floats:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def clipped(pixels: Floats) -> Floats:
    return np.clip(pixels, -1, 1)


# modules, chunk by chunk


@torch.no_grad()
def run(
    vae: Vae, stage: Stage, value: Floats, carried: Mapping[str, torch.Tensor]
) -> tuple[Floats, dict[str, torch.Tensor]]:
    """Run a stage on a chunk; return its result, and what the next call takes by the name of its input."""
    weights = {name: vae.checkpoint.tensors[key] for name, key in stage.keys().items()}
    stage.module.load_state_dict(weights, assign=True)
    tensors = [carried[spec.name] for spec in stage.inputs[1:]]
    result, *others = stage.module(torch.from_numpy(value)[None], *tensors)
    outputs = dict(zip((spec.name for spec in stage.outputs[1:]), others, strict=True))
    return result[0].numpy(), {name: outputs[output] for output, name in stage.carried.items()}


def by_chunks(vae: Vae, stages: tuple[Stage, Stage], values: Floats, frames: int) -> Floats:
    """Run the stage of the first frame, and then the other on so many frames at a time."""
    results, carried = [], {}
    for start in range(1 - frames, values.shape[1], frames):
        part = values[:, max(start, 0) : start + frames]
        result, carried = run(vae, stages[start > 0], part, carried)
        results.append(result)
    return np.concatenate(results, 1)


@pytest.mark.parametrize("frames", [1, 9])
def test_a_decoder_of_chunks_gives_what_diffusers_gives(
    frames: int, vae: Vae, reference: AutoencoderKLWan, kind: str
) -> None:
    latents = noise(CHANNELS, 1 + (frames - 1) // 4, *SIZE)
    wanted = decoded_by_diffusers(reference, latents)
    made = by_chunks(vae, (*vae.coding.first_decoding, *vae.coding.decoding), latents, 1)
    assert made.shape == wanted.shape == (3, frames, *(factor(kind) * size for size in SIZE))
    np.testing.assert_allclose(clipped(made), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("frames", [1, 9])
def test_an_encoder_of_chunks_gives_what_diffusers_gives(
    frames: int, vae: Vae, reference: AutoencoderKLWan, kind: str
) -> None:
    pixels = np.tanh(noise(3, frames, *(factor(kind) * size for size in SIZE)))
    wanted = encoded_by_diffusers(reference, pixels)
    made = by_chunks(vae, (*vae.coding.first_encoding, *vae.coding.encoding), pixels, 4)
    np.testing.assert_allclose(made, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_every_carried_feature_counts(vae: Vae) -> None:
    """A stage that mixed two of them up, or lost one, would be seen in the tests above."""
    first, following = *vae.coding.first_decoding, *vae.coding.decoding
    latents = noise(CHANNELS, 2, *SIZE)
    _, carried = run(vae, first, latents[:, :1], {})
    right, second = run(vae, following, latents[:, 1:], carried)
    for name, feature in (carried | second).items():
        given = second if not carried[name].any() else carried  # some are zeros after the first chunk
        other, _ = run(vae, following, latents[:, 1:], {**given, name: feature + 1})
        same, _ = run(vae, following, latents[:, 1:], given)
        assert np.abs(other - same).max() > TOLERANCE, name
    assert np.isfinite(right).all()


def test_rows_beyond_a_whole_number_of_latent_ones_are_ignored(vae: Vae, kind: str) -> None:
    (first,) = vae.coding.first_encoding
    pixels = noise(3, 1, factor(kind) * 2 + 1, factor(kind) * 3 + 2)
    made, _ = run(vae, first, pixels, {})
    wanted, _ = run(vae, first, np.ascontiguousarray(pixels[:, :, :-1, :-2]), {})
    np.testing.assert_array_equal(made, wanted)


def test_the_stages_hold_all_weights_and_no_copy_of_them(vae: Vae) -> None:
    stages = (*vae.coding.decoders, *vae.coding.encoders)
    assert {key for stage in stages for key in stage.keys().values()} == set(vae.checkpoint.tensors)
    for stage in stages:
        assert not list(stage.module.buffers())
        assert {spec.name for spec in stage.outputs[1:]} == {*stage.carried}


@torch.no_grad()
def test_carried_features_are_as_narrow_as_the_convolutions_that_take_them(folder: Path, kind: str, vae: Vae) -> None:
    """Convolutions round carried features anyway, so in bfloat16 they take half the memory and lose nothing."""
    narrow = open_vae(folder, latent_space(kind), "bf16")
    dtypes = narrow.dtypes()
    for stages, wide in ((narrow.coding.decoders, vae.coding.decoders), (narrow.coding.encoders, vae.coding.encoders)):
        carried: dict[str, torch.Tensor] = {}
        carried_wide: dict[str, torch.Tensor] = {}
        for stage, other in zip(stages, wide, strict=True):
            names = {*stage.carried, *stage.carried.values()}
            for spec in (*stage.inputs, *stage.outputs):
                assert spec.dtype == ("bfloat16" if spec.name in names else "float32")
            weights = {
                name: narrow.checkpoint.tensors[key].to(TORCH_DTYPES[dtypes[key]]) for name, key in stage.keys().items()
            }
            stage.module.load_state_dict(weights, assign=True)
            value = noise(*other.inputs[0].shape(latent_space(kind).image_axes(*SIZE)))
            result, *others = stage.module(torch.from_numpy(value), *carried.values())
            assert result.dtype == torch.float32
            assert {one.dtype for one in others} == {torch.bfloat16}
            wanted, carried_wide = run(vae, other, value[0], carried_wide)
            error, size = (np.square(some).mean() ** 0.5 for some in (result[0].numpy() - wanted, wanted))
            assert 1e-4 < error / size < PRECISION_TOLERANCE
            carried = dict(zip(carried_wide, others, strict=True))


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": [0.0] * 3}, "latents_mean: expected 4 numbers, as many as z_dim"),
        ({"latents_std": "absent"}, "latents_std: Field required"),
        ({"temperal_downsample": [True]}, "temperal_downsample: expected an entry for each of dim_mult but the last"),
        ({"temperal_downsample": [True, False]}, "makes 2 frames of a latent frame: expected 4"),
        ({"attn_scales": [1.0]}, "attn_scales: Tuple should have at most 0 items"),
        ({"in_channels": 5, "out_channels": 5}, "(?s)in_channels: expected 3, 3 for each.*out_channels: expected 3"),
        ({"is_residual": True, "base_dim": 3, "dim_mult": [1, 2, 5]}, "base_dim and dim_mult do not fit together"),
        ({"z_dim": 0, "num_res_blocks": 0}, "(?s)z_dim.*num_res_blocks"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_configurations_that_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    write_wan_vae(tmp_path / "vae", "plain")
    set_config(tmp_path / "vae", **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        open_vae(tmp_path / "vae", latent_space("plain"))
    assert str(tmp_path / "vae" / "config.json") in str(raised.value)


def test_a_model_with_other_latents_is_refused(tmp_path: Path) -> None:
    write_wan_vae(tmp_path / "vae", "plain")
    with pytest.raises(InputError, match="4 channels, 4 pixels a row; the model makes 4 channels, 8 pixels a row"):
        open_vae(tmp_path / "vae", latent_space("residual"))
    with pytest.raises(InputError, match="other latent frames to AutoencoderKLWan than to this model"):
        open_vae(tmp_path / "vae", LATTE_LATENT)
    set_weights(tmp_path / "vae", lambda tensors: tensors.pop("decoder.mid_block.attentions.0.norm.gamma"))
    with pytest.raises(CheckpointError, match=r"(?s)1 tensor missing.*vae\.decoder\..*norm\.gamma"):
        open_vae(tmp_path / "vae", latent_space("plain"))


# engines


@pytest.fixture(scope="module")
def exported(kind: str, folder: Path) -> tuple[Bundle, OrtBackend]:
    """A bundle of the VAE alone."""
    place = folder.parent / "bundle"
    write_vae_bundle(place, folder, latent_space(kind))
    return open_bundle(place), OrtBackend(place)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 5, 17, 81])
def test_engines_give_what_diffusers_gives_of_the_whole_video(
    frames: int, exported: tuple[Bundle, OrtBackend], reference: AutoencoderKLWan, kind: str
) -> None:
    size = (3, 2) if frames == 81 else SIZE
    latents = noise(CHANNELS, 1 + (frames - 1) // 4, *size)
    wanted = decoded_by_diffusers(reference, latents)
    parts = list(decode(*exported, latents, frames))
    assert [part.shape[1] for part in parts] == [1] + [4] * ((frames - 1) // 4)
    np.testing.assert_allclose(clipped(np.concatenate(parts, 1)), wanted, rtol=0, atol=TOLERANCE)
    pixels = np.tanh(noise(3, frames, *(factor(kind) * size for size in SIZE)))
    made = encode(*exported, pixels, drawn(0))
    np.testing.assert_allclose(made, encoded_by_diffusers(reference, pixels), rtol=0, atol=TOLERANCE)


def relative(error: Floats, wanted: Floats) -> float:
    """Return the root mean square of an error, over that of what is wanted."""
    return float(np.square(error).mean() ** 0.5 / np.square(wanted).mean() ** 0.5)


@pytest.mark.slow
def test_engines_in_bfloat16(folder: Path, kind: str, vae: Vae, reference: AutoencoderKLWan, tmp_path: Path) -> None:
    """Pixels and latents stay float32; carried features are bfloat16, and what they lose does not add up over time."""
    write_vae_bundle(tmp_path / "narrow", folder, latent_space(kind), "bf16")
    bundle = open_bundle(tmp_path / "narrow")
    narrow = (bundle, OrtBackend(bundle.folder))
    stages = {stage.name: stage for stage in (*vae.coding.decoders, *vae.coding.encoders)}
    graphs = bundle.manifest.vae_graphs()
    assert {graph.name for graph in graphs} == {"decoder", "decoder.first", "vae_encoder", "vae_encoder.first"}
    for graph in graphs:
        carried = {*graph.carried, *graph.carried.values()}
        assert bool(carried)
        for spec in (*graph.inputs, *graph.outputs):
            assert spec.dtype == ("bfloat16" if spec.name in carried else "float32")
        assert graph.weight_dtypes == ("bfloat16", "float32")
        wide = 4 * sum(parameter.numel() for parameter in stages[graph.name].module.parameters())
        assert graph.weights_nbytes
        assert graph.weights_nbytes < 0.6 * wide
        assert graph.check
        assert graph.check.error < PRECISION_TOLERANCE
    latents = noise(CHANNELS, 6, *SIZE)
    frames = 21
    pixels = np.tanh(noise(3, frames, *(factor(kind) * size for size in SIZE)))
    wanted = decoded_by_diffusers(reference, latents)
    made = clipped(np.concatenate(list(decode(*narrow, latents, frames)), 1))
    for start in (0, 1, 5, 9, 13, 17):  # of a chunk
        chunk = np.s_[:, start : start + (4 if start else 1)]
        assert 1e-4 < relative(made[chunk] - wanted[chunk], wanted[chunk]) < PRECISION_TOLERANCE / 2
    encoded = encode(*narrow, pixels, drawn(0))
    of_diffusers = encoded_by_diffusers(reference, pixels)
    assert 1e-4 < relative(encoded - of_diffusers, of_diffusers) < PRECISION_TOLERANCE / 2


@pytest.mark.slow
def test_tiles_are_those_of_diffusers(
    exported: tuple[Bundle, OrtBackend], reference: AutoencoderKLWan, kind: str
) -> None:
    """Where pixels are patches, weights within an overlap differ by up to a pixel's step."""
    side = 8 * factor(kind)
    reference.enable_tiling(side, side, side * 3 // 4, side * 3 // 4)
    latents = noise(CHANNELS, 3, 9, 13)
    try:
        wanted = decoded_by_diffusers(reference, latents)
    finally:
        reference.use_tiling = False
    unclipped = decoded_at_once(*exported, latents, tile=side)
    made = clipped(unclipped)
    patch = CONFIGS[kind].get("patch_size", 1)
    # along both axes, of values that are at most twice the largest apart
    step = 2 * 2 * float(np.abs(unclipped).max()) * (patch - 1) / (side // 4)
    np.testing.assert_allclose(made, wanted, rtol=0, atol=TOLERANCE + step)
    inside = np.s_[:, :, side // 4 : side * 3 // 4, side // 4 : side * 3 // 4]  # no overlap
    np.testing.assert_allclose(made[inside], wanted[inside], rtol=0, atol=TOLERANCE)
    whole = clipped(decoded_at_once(*exported, latents))
    assert np.abs(whole - made).max() > 100 * TOLERANCE  # a tile does not see its neighbours


@pytest.mark.slow
def test_an_encoders_tiles_are_those_of_diffusers(
    exported: tuple[Bundle, OrtBackend], reference: AutoencoderKLWan, kind: str
) -> None:
    """Patches are left out: diffusers measures their tiles in patches."""
    if "patch_size" in CONFIGS[kind]:
        pytest.skip("diffusers cuts larger tiles here")
    side = 8 * factor(kind)
    pixels = np.tanh(noise(3, 9, 9 * factor(kind), 13 * factor(kind)))
    reference.enable_tiling(side, side, side * 3 // 4, side * 3 // 4)
    try:
        wanted = encoded_by_diffusers(reference, pixels)
    finally:
        reference.use_tiling = False
    np.testing.assert_allclose(encode(*exported, pixels, drawn(0), side), wanted, rtol=0, atol=TOLERANCE)
