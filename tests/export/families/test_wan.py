"""Wan's stages in torch against diffusers' transformer, its configurations, and its layouts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from adacache_engines.bundle.manifest import IMAGE_STATES, VIDEO_CONDITION
from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import Checkpoint, check
from adacache_export.checkpoint.pipeline_folder import PipelineConfigs
from adacache_export.families.registry import FAMILIES, own_name, recognise
from adacache_export.families.wan.config import WanConfig
from adacache_export.families.wan.published import FLOW, published
from adacache_export.stages import run_stages
from tests.helpers.tiny_models import wan

FAMILY = FAMILIES["wan"]
Shapes = dict[str, tuple[int, ...]]


def shapes_of(tensors: dict[str, Any]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = wan.transformer().state_dict()
    return state


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return dict(wan.transformer().config)


SIZES = [
    ({"num_attention_heads": 3, "attention_head_dim": 16}, (5, 6, 10)),
    ({"cross_attn_norm": False, "eps": 1e-2, "freq_dim": 24, "num_layers": 1}, (1, 2, 4)),
    ({"attention_head_dim": 20}, (3, 4, 2)),
    ({"attention_head_dim": 6, "patch_size": (1, 1, 2), "out_channels": 5, "in_channels": 5}, (4, 3, 6)),
]


@pytest.mark.parametrize("granularity", ["block", "module"])
@pytest.mark.parametrize(("changes", "size"), SIZES)
def test_the_stages_predict_what_diffusers_predicts(
    changes: dict[str, Any], size: tuple[int, int, int], granularity: Any
) -> None:
    original = wan.transformer(**changes)
    state = original.state_dict()
    settled = FAMILY.config_from(dict(original.config), shapes_of(state))
    stages = FAMILY.stages(settled, ("joint.0.modulated", "joint.0.attn"), granularity=granularity)
    for stage in stages:
        stage.module.load_state_dict({name: state[key] for name, key in stage.keys().items()})
    torch.manual_seed(0)
    latents = torch.randn(2, settled.out_channels, *size)
    given = {"latents": latents, "captions": torch.randn(2, 7, 20), "timestep": torch.tensor([999.0, 333.0])}
    seen: dict[str, torch.Tensor] = {}
    original.blocks[0].attn1.register_forward_hook(lambda _module, inputs, _out: seen.update(modulated=inputs[0]))
    with torch.no_grad():
        made = run_stages(stages, given)
        expected = original(latents, given["timestep"], given["captions"]).sample
    assert (made["prediction"] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (made["joint.0.modulated"].flatten(1, 2) - seen["modulated"]).abs().max() <= 1e-5


def test_frames_that_are_kept_are_modulated_as_at_timestep_0() -> None:
    """diffusers takes a timestep for each token."""
    original = wan.transformer()
    state = original.state_dict()
    make_stages = FAMILY.conditioned_stages
    assert make_stages is not None
    stages = make_stages(FAMILY.config_from(dict(original.config), shapes_of(state)))
    for stage in stages:
        stage.module.load_state_dict({name: state[key] for name, key in stage.keys().items()})
    torch.manual_seed(0)
    latents, captions = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 7, 20)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    timestep = torch.tensor([500.0, 250.0])
    tokens = (mask[:, :, None] * timestep[:, None, None]).expand(-1, -1, 6).flatten(1)
    with torch.no_grad():
        given = {"latents": latents, "captions": captions, "timestep": timestep, "x_mask": mask}
        made = run_stages(stages, given)["prediction"]
        expected = original(latents, tokens, captions).sample
        plain = original(latents, timestep, captions).sample
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (plain - expected).abs().max() > 1e-3


@pytest.mark.slow
def test_positions_are_tables_of_frames_and_of_tokens_made_once_a_generation() -> None:
    stages = FAMILY.stages(WanConfig(num_layers=1))
    (positions,) = (stage for stage in stages if stage.role == "positions")
    assert positions.per_generation
    assert [spec.axes[0] for spec in positions.outputs] == ["patch_frames", "tokens"]
    takers = [
        stage.name for stage in stages if {spec.name for spec in positions.outputs} & {s.name for s in stage.inputs}
    ]
    assert takers == ["joint.00"]
    parts = {
        stage.part: stage.independent_axes for stage in FAMILY.stages(WanConfig(num_layers=1), granularity="module")
    }
    assert (parts["attn"], parts["cross"], parts["mlp"]) == ((), *[("patch_frames", "tokens")] * 2)


# configurations


def test_the_released_sizes() -> None:
    sizes = {
        "1.3B": (WanConfig(num_attention_heads=12, ffn_dim=8960, num_layers=30), 1_418_996_800),
        "14B": (WanConfig(), 14_288_491_584),
        "I2V-14B": (OF_STATES, 16_394_878_784),
    }
    for config, count in sizes.values():
        shapes = FAMILY.expected(config)
        assert sum(int(torch.Size(shape).numel()) for shape in shapes.values()) == count
        assert FAMILY.config_from(None, shapes) == config


def test_the_configuration_of_diffusers_and_of_the_original(weights: Any, config: dict[str, Any]) -> None:
    settled = FAMILY.config_from(config, shapes_of(weights))
    original = {"_class_name": "WanModel", "num_heads": 2, "in_dim": 16, "out_dim": 16, "ffn_dim": 40, "freq_dim": 32}
    assert FAMILY.config_from({**original, "dim": 24, "eps": 1e-6, "text_len": 512}, shapes_of(weights)) == settled
    with pytest.raises(CheckpointError, match="number of attention heads is not in the weights"):
        FAMILY.config_from(None, shapes_of(weights))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_dim": 1280}, "attends to states of an image, of width 1280, and has no channels for an encoded"),
        ({"image_dim": "wide"}, "image_dim is 'wide', expected a positive whole number"),
        ({"pos_embed_seq_len": 514}, "a model of first and last frames is not supported"),
        ({"in_channels": 36}, "in_channels is 36"),
        ({"qk_norm": "layer_norm"}, "qk_norm"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3"),
        ({"_class_name": "WanVACETransformer3DModel"}, "WanVACETransformer3DModel"),
    ],
)
def test_other_models_are_refused(weights: Any, config: dict[str, Any], change: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        FAMILY.config_from({**config, **change}, shapes_of(weights))


def test_an_encoded_video_beside_the_latents_is_one_for_all_samples() -> None:
    original = wan.transformer(in_channels=36)
    state = original.state_dict()
    config = FAMILY.config_from(dict(original.config), shapes_of(state))
    stages = FAMILY.stages(config)
    for stage in stages:
        stage.module.load_state_dict({name: state[key] for name, key in stage.keys().items()})
    (taken,) = (spec for stage in stages for spec in stage.inputs if spec.name == VIDEO_CONDITION)
    assert taken.axes == (1, 20, "frames", "height", "width")
    torch.manual_seed(0)
    latents, captions, beside = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 7, 20), torch.randn(1, 20, 3, 4, 6)
    timestep = torch.tensor([500.0, 250.0])
    with torch.no_grad():
        given = {"latents": latents, "captions": captions, "timestep": timestep, VIDEO_CONDITION: beside}
        made = run_stages(stages, given)["prediction"]
        expected = original(torch.cat([latents, beside.expand(2, -1, -1, -1, -1)], 1), timestep, captions).sample
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


OF_IMAGES = {"in_channels": 36, "image_dim": 14, "added_kv_proj_dim": 24}


@pytest.mark.parametrize("granularity", ["block", "module"])
def test_blocks_also_attend_to_states_of_an_image(granularity: Any) -> None:
    """All samples share the states, and so the keys and values that each block makes of them."""
    original = wan.transformer(**OF_IMAGES)
    state = original.state_dict()
    config = FAMILY.config_from(dict(original.config), shapes_of(state))
    assert config == FAMILY.config_from(asdict(config), FAMILY.expected(config))
    stages = FAMILY.stages(config, granularity=granularity)
    for stage in stages:
        stage.module.load_state_dict({name: state[key] for name, key in stage.keys().items()})
    assert {key for stage in stages for key in stage.keys().values()} == {*state}
    of_image = [stage for stage in stages if stage.role == "image"]
    assert [stage.name for stage in of_image] == ["image", "joint.00.image", "joint.01.image"]
    assert {spec.axes[0] for stage in of_image for spec in (*stage.inputs, *stage.outputs)} == {1}
    assert all(stage.per_generation for stage in of_image)
    torch.manual_seed(0)
    latents, captions, beside = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 512, 20), torch.randn(1, 20, 3, 4, 6)
    states, timestep = torch.randn(1, 9, 14), torch.tensor([500.0, 250.0])
    given = {"latents": latents, "captions": captions, "timestep": timestep, VIDEO_CONDITION: beside}
    with torch.no_grad():
        made = run_stages(stages, {**given, IMAGE_STATES: states})["prediction"]
        other = run_stages(stages, {**given, IMAGE_STATES: -states})["prediction"]
        both = torch.cat([latents, beside.expand(2, -1, -1, -1, -1)], 1)
        expected = original(both, timestep, captions, states.expand(2, -1, -1)).sample
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (made - other).abs().max() > 1e-3 * expected.abs().max()


def test_models_of_first_and_last_frames_are_refused_by_their_tensors() -> None:
    original = wan.transformer(**OF_IMAGES, pos_embed_seq_len=18)
    names = ["img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"]
    assert own_name("wan", names[0]) == names[1]
    with pytest.raises(CheckpointError, match="a model of first and last frames is not supported"):
        FAMILY.config_from(None, shapes_of(original.state_dict()))


def test_a_norm_that_nothing_reads_is_left_out() -> None:
    """Wan2.1-I2V is published with it in diffusers' layout."""
    original = wan.transformer(**OF_IMAGES)
    state = original.state_dict()
    config = FAMILY.config_from(dict(original.config), shapes_of(state))
    more = {**state, "blocks.1.attn2.norm_added_q.weight": torch.ones(24)}
    check(Checkpoint(more, (Path("a"),)), FAMILY.expected(config), FAMILY.OPTIONAL_KEYS)


def test_other_numbers_of_channels_are_refused() -> None:
    original = wan.transformer(in_channels=52)
    with pytest.raises(CheckpointError, match=r"52 channels and gives 16, .* expected 16, .* or 36,") as caught:
        FAMILY.config_from(dict(original.config), shapes_of(original.state_dict()))
    assert "\n" not in str(caught.value)


EXPERTS = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
IMAGE_TO_VIDEO = WanConfig(in_channels=36)
OF_STATES = WanConfig(in_channels=36, image_dim=1280)


@pytest.mark.parametrize(
    ("config", "index", "vae", "expected"),
    [
        (WanConfig(num_layers=30), {}, {}, ("t2v-1.3b", 8, 1, 5.0, 3.0, "never")),
        (WanConfig(), {}, {}, ("t2v-14b", 8, 1, 5.0, 5.0, "never")),
        (WanConfig(), EXPERTS, {}, ("t2v-a14b", 8, 2, 4.0, 12.0, "never")),
        (WanConfig(in_channels=48, out_channels=48), {}, {}, ("ti2v-5b", 16, 1, 5.0, 5.0, "always")),
        (WanConfig(), {"expand_timesteps": True}, {"scale_factor_spatial": 16}, ("ti2v-5b", 16, 1, 5.0, 5.0, "always")),
        (WanConfig(), {"expand_timesteps": False}, {}, ("t2v-14b", 8, 1, 5.0, 5.0, "never")),
        (IMAGE_TO_VIDEO, {**EXPERTS, "boundary_ratio": 0.9}, {}, ("i2v-a14b", 8, 2, 3.5, 5.0, "never")),
        (IMAGE_TO_VIDEO, {}, {}, ("i2v", 8, 1, 3.5, 5.0, "never")),
        (OF_STATES, {}, {}, ("i2v-14b-720p", 8, 1, 5.0, 5.0, "never")),
    ],
)
def test_models_are_described_as_published(
    config: WanConfig, index: dict[str, Any], vae: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    pipeline = PipelineConfigs(index, vae)
    made = FAMILY.describe(config, None, pipeline=pipeline)
    shift = made.sampler.timestep_shift
    found = (made.latent.spatial_factor, len(made.experts), made.sampler.guidance, shift, made.conditioned)
    assert (published(config, pipeline).model, *found) == expected


@pytest.mark.parametrize(("shift", "height"), [(3.0, 480), (5.0, 720)])
def test_models_of_one_architecture_differ_by_their_shift(shift: float, height: int) -> None:
    scheduler = {"_class_name": "UniPCMultistepScheduler", "flow_shift": shift, **FLOW}
    made = FAMILY.describe(OF_STATES, scheduler)
    assert (made.video.height, made.sampler.timestep_shift, made.sampler.steps) == (height, shift, 40)
    assert made.image is not None
    assert (made.image.tokens, made.image.width) == (257, 1280)
    assert {"teacache", "magcache-fast"} <= {*made.policies}
    others = FAMILY.describe(OF_STATES, {**scheduler, "flow_shift": 8.0 - shift}).policies
    assert made.policies["magcache-fast"] != others["magcache-fast"]


def test_two_experts_divide_the_timesteps() -> None:
    made = FAMILY.describe(WanConfig(), None, pipeline=PipelineConfigs(EXPERTS))
    assert [(expert.timesteps, expert.guidance) for expert in made.experts] == [((875, 1000), 4.0), ((0, 875), 3.0)]
    original = FAMILY.describe(WanConfig(), None, pipeline=PipelineConfigs(unnamed_experts=True))
    assert original.experts == made.experts
    with pytest.raises(CheckpointError, match="boundary_ratio None"):
        FAMILY.describe(WanConfig(), None, pipeline=PipelineConfigs({**EXPERTS, "boundary_ratio": None}))


@pytest.mark.parametrize(("frames", "nearest"), [(1, (1, 1)), (80, (77, 81)), (81, (81, 81)), (2, (1, 5))])
def test_videos_have_one_frame_more_than_a_multiple_of_four(frames: int, nearest: tuple[int, int]) -> None:
    assert FAMILY.describe(WanConfig(), None).latent.frames.nearest(frames) == nearest


# names of tensors


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of Wan's own repository."""
    pairs = [
        ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
        ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        (".to_out.0.", ".o."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        ("norm2", "norm3"),
        ("proj_out", "head.head"),
        (".add_k_proj.", ".k_img."),
        (".add_v_proj.", ".v_img."),
        (".norm_added_k.", ".norm_k_img."),
    ]
    named = {}
    for name, tensor in state.items():
        for own, other in pairs:
            name = name.replace(own, other)
        if name.endswith("scale_shift_table"):
            name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        named[name] = tensor
    return named


@pytest.mark.parametrize("changes", [{}, OF_IMAGES], ids=["text", "images"])
def test_names_of_the_original_repository(changes: dict[str, Any]) -> None:
    """Diffusers' own converter translates the names alike."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    weights = wan.transformer(**changes).state_dict()
    published = original_names(weights)
    assert published.keys() != weights.keys()
    converted = convert_wan_transformer_to_diffusers(dict(published))
    assert converted.keys() == weights.keys()
    for prefix in ("", "diffusion_model."):
        translated = {own_name("wan", prefix + name): tensor for name, tensor in published.items()}
        assert {name: id(tensor) for name, tensor in translated.items()} == {n: id(t) for n, t in converted.items()}
    assert recognise(published) is FAMILY
    assert {own_name("wan", name) for name in weights} == weights.keys()


def test_a_lora_is_refused() -> None:
    names = ["diffusion_model.blocks.0.self_attn.q.lora_down.weight", "transformer.blocks.0.attn1.to_q.lora_A.weight"]
    others = ["lora_unet_blocks_0_ffn_0.alpha", "blocks.0.ffn.0.lokr_w1", "blocks.0.ffn.0.hada_w1_a"]
    for name in names + others:
        with pytest.raises(CheckpointError, match="LoRA") as caught:
            recognise([name])
        assert "\n" not in str(caught.value)


def test_a_transformer_of_another_family_is_refused_by_its_class() -> None:
    with pytest.raises(CheckpointError, match="CogVideoXTransformer3DModel") as caught:
        recognise(["patch_embed.proj.weight"], {"_class_name": "CogVideoXTransformer3DModel"})
    assert "\n" not in str(caught.value)
