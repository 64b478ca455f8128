"""How checkpoints of Latte-1 and Open-Sora-Plan 1.1 are found, told apart and described."""

import functools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adacache_engines.bundle.manifest import Preset
from adacache_engines.errors import CheckpointError, InputError
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint
from adacache_export.checkpoint.pipeline_folder import PipelineConfigs
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig, Positions
from adacache_export.families.registry import FAMILIES, Family, recognise
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.caching.simulate import bounds, replay
from tests.helpers.originals.reference import DATA

LATTE, PLAN = FAMILIES["latte-1"], FAMILIES["open-sora-plan-1.1"]
RELEASED = LatteT2VConfig()
BUFFER = "caption_projection.y_embedding"


@functools.cache
def expected(family: Family, config: LatteT2VConfig) -> dict[str, tuple[int, ...]]:
    """To be looked at only: it is made once."""
    return family.expected(config)


def config_json(folder: str) -> dict[str, Any]:
    given: dict[str, Any] = json.loads((DATA / folder / "config.json").read_text())
    return given


def settled(family: Family, shapes: dict[str, tuple[int, ...]] | None = None, **given: Any) -> LatteT2VConfig:
    config: LatteT2VConfig = family.config_from(given, expected(family, RELEASED) if shapes is None else shapes)
    return config


def refusal(family: Family, **given: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        settled(family, **given)
    return str(caught.value)


@pytest.mark.parametrize("family", [LATTE, PLAN])
def test_the_published_size(family: Family) -> None:
    shapes = family.expected(RELEASED)
    assert len(shapes) == 967
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_057_246_880
    assert shapes["transformer_blocks.27.attn2.to_k.weight"] == (1152, 1152)
    assert "temporal_transformer_blocks.0.attn2.to_k.weight" not in shapes
    assert shapes["caption_projection.linear_1.weight"] == (1152, 4096)
    assert shapes["proj_out.weight"] == (32, 1152)


@pytest.mark.parametrize(("folder", "family"), [("latte", LATTE), ("open-sora-plan", PLAN)])
def test_the_reference_checkpoints_are_told_apart_by_their_config(folder: str, family: Family) -> None:
    checkpoint = open_checkpoint(DATA / folder)
    assert recognise(checkpoint.tensors, checkpoint.config) is family
    config = family.config_from(checkpoint.config, checkpoint.shapes())
    check(checkpoint, family.expected(config), family.OPTIONAL_KEYS, family.constants(config))
    assert BUFFER in checkpoint.tensors
    less = replace(checkpoint, tensors={key: value for key, value in checkpoint.tensors.items() if key != BUFFER})
    check(less, family.expected(config), family.OPTIONAL_KEYS, family.constants(config))


def test_without_a_config_the_user_says_which() -> None:
    names = LATTE.expected(RELEASED)
    with pytest.raises(CheckpointError, match=r"latte-1 and of open-sora-plan-1\.1.*--config FILE.*--family"):
        recognise(names)
    assert recognise(names, None, "latte-1") is LATTE
    assert recognise(names, None, "open-sora-plan-1.1") is PLAN
    assert recognise(names, {"_class_name": "LatteTransformer3DModel"}) is LATTE
    assert recognise(names, {"_class_name": "LatteT2V", "use_rope": False}) is PLAN
    with pytest.raises(InputError, match=r"sora.*there are open-sora-1\.2, latte-1"):
        recognise(names, None, "sora")
    with pytest.raises(CheckpointError, match=r"open-sora-1\.2: lacks"):
        recognise(names, None, "open-sora-1.2")


def test_the_released_weights_need_no_config() -> None:
    shapes = LATTE.expected(RELEASED)
    assert LATTE.config_from(None, shapes) == RELEASED
    assert PLAN.config_from(None, shapes) == replace(RELEASED, video_length=17, model_max_length=300)


def test_other_weights_need_one_for_the_number_of_heads() -> None:
    shapes = LATTE.expected(replace(RELEASED, num_attention_heads=8))
    with pytest.raises(CheckpointError, match=r"576 wide.*1152.*config\.json"):
        LATTE.config_from(None, shapes)
    for given in ({"num_attention_heads": 8}, {"attention_head_dim": 72}):
        assert settled(LATTE, shapes, **given) == replace(RELEASED, num_attention_heads=8)
    with pytest.raises(CheckpointError, match="num_attention_heads is 16 there, and 8 by the shapes"):
        settled(LATTE, shapes, num_attention_heads=16, attention_head_dim=72)


@pytest.mark.parametrize(("frames", "scale"), [(16, 1), (17, 1), (32, 2), (33, 2), (56, 3), (129, 8), (5, 1)])
def test_temporal_positions_of_long_clips_are_squeezed(frames: int, scale: float) -> None:
    assert settled(PLAN, video_length=frames).interpolation_scale_1d == scale
    assert settled(PLAN, video_length=frames, interpolation_scale_1d=None).interpolation_scale_1d == scale
    assert settled(PLAN, video_length=frames, interpolation_scale_1d=2.5).interpolation_scale_1d == 2.5
    assert settled(LATTE, video_length=frames).interpolation_scale_1d == 1


def positions(config: LatteT2VConfig, size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tables by token and by frame for latents of a size (frames, rows, columns)."""
    tables: tuple[torch.Tensor, torch.Tensor] = Positions(config)(torch.empty(1, config.in_channels, *size))
    return tables


def test_squeezed_positions_are_those_of_fewer_frames() -> None:
    config = settled(PLAN, {}, video_length=56, num_attention_heads=2, attention_head_dim=8, num_layers=1)
    plain = replace(config, interpolation_scale_1d=1.0)
    assert torch.allclose(positions(config, (56, 2, 2))[1][::3], positions(plain, (19, 2, 2))[1])
    assert not positions(config, (1, 2, 2))[1].any()  # a single frame has no place in time


def test_sizes_beyond_the_training_are_interpolated() -> None:
    config = settled(LATTE, {}, num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8)
    large, small = (positions(config, (1, side, side))[0].unflatten(0, (side // 2, -1)) for side in (16, 8))
    assert torch.allclose(large[::2, ::2], small)
    by_column, by_row = small.split(8, -1)
    assert torch.equal(by_column[0], by_column[3])  # width first
    assert torch.equal(by_row[:, 0], by_row[:, 3])
    large, small = (positions(replace(config, sample_size=(side, side)), (1, 128, 128))[0] for side in (128, 64))
    assert torch.allclose(large, small)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rope", True),
        ("compress_kv_factor", 2),
        ("activation_fn", "geglu"),
        ("norm_type", "layer_norm"),
        ("attention_bias", False),
        ("patch_size_t", 2),
        ("norm_elementwise_affine", True),
    ],
)
@pytest.mark.parametrize("family", [LATTE, PLAN])
def test_variants_that_cannot_be_exported(family: Family, key: str, value: Any) -> None:
    message = refusal(family, **{key: value})
    assert f"{key} is {json.dumps(value)}" in message
    assert "not supported" in message


def test_geglu_weights_are_refused_by_their_shape() -> None:
    shapes = LATTE.expected(RELEASED)
    for kind in ("transformer_blocks", "temporal_transformer_blocks"):
        shapes[f"{kind}.0.ff.net.0.proj.weight"] = (9216, 1152)
    with pytest.raises(CheckpointError, match="GEGLU"):
        LATTE.config_from(None, shapes)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 12), ("in_channels", 3), ("out_channels", 4), ("patch_size", 4), ("caption_channels", 768)],
)
def test_a_contradiction_names_both_values(field: str, value: int) -> None:
    message = refusal(LATTE, **{field: value})
    assert f"{field} is {value} there, and {getattr(RELEASED, field)} by the shapes" in message


SMALL = replace(RELEASED, num_attention_heads=2, attention_head_dim=8, num_layers=2, caption_channels=24)
SMALL_JSON = {"num_attention_heads": 2, "attention_head_dim": 8}


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 0), (3, 3), (1, 1, 1, 1), (0, 0, 0, 0)])
@pytest.mark.parametrize("key", [key for key in expected(LATTE, SMALL) if "blocks.1" not in key])
def test_odd_shapes_end_in_one_kind_of_error(key: str, shape: tuple[int, ...]) -> None:
    shapes = {**expected(LATTE, SMALL), key: shape}
    for given in (None, SMALL_JSON):
        try:
            config = LATTE.config_from(given, shapes)
        except CheckpointError:
            continue
        assert expected(LATTE, config)[key] != shape or config != SMALL


@pytest.mark.parametrize("gone", [key for key in expected(LATTE, SMALL) if key not in LATTE.SIGNATURE_KEYS])
def test_one_missing_tensor_is_the_one_that_is_named(gone: str) -> None:
    shapes = {key: shape for key, shape in expected(LATTE, SMALL).items() if key != gone}
    config = LATTE.config_from(SMALL_JSON, shapes)
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    with pytest.raises(CheckpointError, match="1 tensor missing") as caught:
        check(Checkpoint(tensors, (Path("a.ckpt"),)), expected(LATTE, config), LATTE.OPTIONAL_KEYS)
    assert f"    {gone}, expected" in str(caught.value)


@pytest.mark.parametrize("field", ["video_length", "sample_size", "num_attention_heads", "model_max_length"])
@pytest.mark.parametrize("value", ["16", 0, -1, [], {}, True, 1.5])
def test_nonsense_in_config_json(field: str, value: Any) -> None:
    assert field in refusal(PLAN, **{field: value})


def test_latte_is_described_as_published() -> None:
    described = LATTE.describe(RELEASED, None)
    assert (described.sampler.name, described.sampler.steps, described.sampler.guidance) == ("ddim", 50, 7.5)
    assert LATTE.describe(RELEASED, None, "bfloat16").sampler.condition_dtype == "float32"
    video, latent = described.video, described.latent
    assert (video.height, video.width, video.frames, video.fps) == (512, 512, 16, 8)
    assert latent.token_axes(16, 64, 64) == {"patch_frames": 16, "tokens": 1024}
    assert described.guidance.order == ("unconditional", "conditional")
    assert described.guidance.null_captions is None
    assert (described.text.max_length, described.text.cleaning, described.text.masking) == (
        120,
        "html-and-captions",
        "cut",
    )
    assert described.probe == "temporal.13.attn"
    assert {name: profile["frames"] for name, profile in described.profiles.items()} == {
        "clip": (16, 16),
        "image": (1, 1),
    }


@pytest.mark.parametrize(("length", "frames"), [(17, 65), (56, 221), (129, 513)])
def test_open_sora_plan_is_described_as_published(length: int, frames: int) -> None:
    described = PLAN.describe(settled(PLAN, video_length=length), None)
    assert (described.sampler.name, described.sampler.steps, described.sampler.guidance) == ("pndm", 150, 7.5)
    assert (described.video.frames, described.video.fps) == (frames, 24)
    assert described.latent.latent_frames(frames) == length
    assert described.text.max_length == 300
    assert {name: profile["frames"] for name, profile in described.profiles.items()} == {"clip": (length, length)}


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (2, 1), (3, 2), (4, 1), (5, 2), (64, 16), (65, 17), (67, 18)])
def test_latent_frames_of_a_causal_vae(frames: int, latent: int) -> None:
    assert PLAN.describe(settled(PLAN), None).latent.latent_frames(frames) == latent


@pytest.mark.parametrize(("blocks", "factor"), [([8, 8, 8, 8], 8), ([8, 8], 2), (None, 8)])
def test_the_vae_of_a_pipeline_says_how_many_pixels_a_latent_row_has(blocks: Any, factor: int) -> None:
    vae = {} if blocks is None else {"block_out_channels": blocks}
    assert LATTE.describe(RELEASED, None, pipeline=PipelineConfigs({}, vae)).latent.spatial_factor == factor


def test_the_reference_scheduler_files_are_the_defaults() -> None:
    for family, folder in ((LATTE, "latte"), (PLAN, "open-sora-plan")):
        given = json.loads((DATA / folder / "scheduler_config.json").read_text())
        assert family.describe(RELEASED, given).sampler == family.describe(RELEASED, None).sampler


def test_a_scheduler_file_may_name_the_other_sampler() -> None:
    assert LATTE.describe(RELEASED, {"_class_name": "PNDMScheduler"}).sampler.name == "pndm"
    assert PLAN.describe(RELEASED, {"_class_name": "DDIMScheduler", "clip_sample": True}).sampler.name == "ddim"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "EulerDiscreteScheduler"),
        ("beta_end", 0.012),
        ("beta_schedule", "scaled_linear"),
        ("prediction_type", "v_prediction"),
        ("timestep_spacing", "linspace"),
        ("steps_offset", 1),
        ("set_alpha_to_one", False),
        ("thresholding", True),
        ("num_train_timesteps", 4000),
    ],
)
def test_other_noise_schedules_are_refused(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        LATTE.describe(RELEASED, {key: value})
    assert "scheduler_config.json" in str(caught.value)
    assert str(value) in str(caught.value)


def test_a_diffusers_folder(tmp_path: Path) -> None:
    for part, source, name in (
        ("transformer", "weights.safetensors", "diffusion_pytorch_model.safetensors"),
        ("transformer", "config.json", "config.json"),
        ("scheduler", "scheduler_config.json", "scheduler_config.json"),
    ):
        (tmp_path / part).mkdir(exist_ok=True)
        shutil.copyfile(DATA / "latte" / source, tmp_path / part / name)
    for other in ("vae", "text_encoder"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert recognise(checkpoint.tensors, checkpoint.config) is LATTE
    assert checkpoint.scheduler is not None
    assert checkpoint.scheduler["set_alpha_to_one"]


def test_open_sora_plans_folders(tmp_path: Path) -> None:
    for length in ("65x512x512", "221x512x512"):
        folder = tmp_path / length
        folder.mkdir()
        shutil.copyfile(DATA / "open-sora-plan" / "weights.safetensors", folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text(json.dumps(config_json("open-sora-plan")))
        checkpoint = open_checkpoint(folder)
        assert recognise(checkpoint.tensors, checkpoint.config) is PLAN
    with pytest.raises(CheckpointError, match=r"221x512x512/, 65x512x512/"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "wrap", [lambda w: {"ema": w}, lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}}]
)
def test_single_files_in_wrappers(tmp_path: Path, wrap: Any) -> None:
    weights = load_file(DATA / "latte" / "weights.safetensors")
    torch.save(wrap(weights), tmp_path / "t2v.pt")
    checkpoint = open_checkpoint(tmp_path / "t2v.pt")
    assert checkpoint.tensors.keys() == weights.keys()
    assert recognise(checkpoint.tensors, config_json("latte")) is LATTE


def test_compressed_keys_show_as_tensors_that_are_not_expected(tmp_path: Path) -> None:
    weights = load_file(DATA / "open-sora-plan" / "weights.safetensors")
    weights["transformer_blocks.2.attn1.sr.weight"] = torch.zeros(32, 1, 2, 2)
    save_file(weights, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    config = PLAN.config_from(config_json("open-sora-plan"), checkpoint.shapes())
    with pytest.raises(CheckpointError, match=r"unexpected:\n.*attn1\.sr\.weight"):
        check(checkpoint, PLAN.expected(config), PLAN.OPTIONAL_KEYS)


@pytest.mark.parametrize(
    ("family", "calls", "computed"),
    [
        (LATTE, 50, {"adacache-slow": 29, "adacache-fast": 15, "adacache-fast-moreg": 17}),
        (PLAN, 158, {"adacache-slow": 62, "adacache-fast": 41, "adacache-fast-moreg": 43}),
    ],
)
def test_presets_can_compute_as_many_calls_as_the_paper_says(
    family: Family, calls: int, computed: dict[str, int]
) -> None:
    """How many it is depends on the model; that it can be so many, on the rates."""
    described = family.describe(settled(family), None)
    timesteps = [float(calls - call) for call in range(calls)]
    assert {name for name in described.policies if name.startswith("adacache")} == computed.keys()
    for name, wanted in computed.items():
        assert "no thresholds are published" in described.policies[name].note
        assert f"{wanted} ({name.removeprefix('adacache-')})" in described.policies[name].note
        fewest, most = (replay(policy, timesteps) for policy in bounds(policy_from(name, described.policies)))
        assert sum(map(any, fewest)) < wanted < sum(map(any, most))


def test_presets_of_a_model_come_before_those_of_the_program() -> None:
    own = LATTE.describe(RELEASED, None).policies
    assert policy_from("adacache-fast", own) != policy_from("adacache-fast")
    assert policy_from("interval-2", own) == policy_from("interval-2")
    with pytest.raises(InputError, match="presets: mine, never"):
        policy_from("yours", {"mine": own["adacache-fast"]})
    broken = {"mine": Preset(policy={"name": "adacache", "codebook": []})}
    with pytest.raises(InputError, match="preset mine of the bundle: codebook"):
        policy_from("mine", broken)
