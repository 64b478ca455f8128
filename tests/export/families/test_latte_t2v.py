"""Latte-1 and Open-Sora-Plan: stages in torch and as engines against every tensor of the originals that was recorded,
and whole sampling runs.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adacache_engines.bundle.manifest import Graph
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.families.registry import FAMILIES
from adacache_export.stages import OUT, Stage, run_stages
from adacache_export.tracing.graph_file import write_graph
from adacache_export.tracing.trace import trace
from adacache_export.writing.weights_file import write_weights
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.pipeline import Pipeline
from tests.helpers.originals.latte_originals import ORIGINALS, PATCH, Original, model_inputs, request
from tests.helpers.originals.reference import Arrays, run_graph, worst

TOLERANCE = 2e-5  # absolute
TRAJECTORY = 1e-5  # relative, L2


VARIANTS = [
    (name, variant)
    for name, original in ORIGINALS.items()
    for variant in sorted(key.removesuffix(".out") for key in original.outputs if key.endswith(".out"))
]
HOOKED = [(name, key) for name, original in ORIGINALS.items() for key in original.outputs if not key.endswith(".out")]


@pytest.fixture(scope="module", params=["latte", pytest.param("open-sora-plan", marks=pytest.mark.slow)])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def pipeline(name: str, latte_bundle: Callable[[str], Path]) -> Pipeline:
    return Pipeline.open(latte_bundle(name))


def runs_in(variant: str, stage: str) -> bool:
    return variant != "notemporal" or not stage.startswith("temporal")


def run_torch(stages: list[Stage], inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    tensors = {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in inputs.items()}
    with torch.no_grad():
        return {name: value.numpy() for name, value in run_stages(stages, tensors).items()}


def layout(name: str, hidden: np.ndarray) -> np.ndarray:
    """(B, T, S, D) as the original has it: (B T) S D in spatial blocks, (B S) T D in temporal ones."""
    return (hidden.swapaxes(1, 2) if "temporal" in name else hidden).reshape(-1, *_inner(name, hidden))


def _inner(name: str, hidden: np.ndarray) -> tuple[int, int]:
    _, frames, tokens, width = hidden.shape
    return (frames if "temporal" in name else tokens), width


def seen_in_torch(original: Original, variant: str) -> Arrays:
    """Return the tensors that hooks see, under the names of the reference and in its layouts."""
    stages = original.stages()
    shown: Arrays = {}

    def watch(module: Any, key: str, result: Callable[[Any], Tensor] = lambda out: out) -> None:
        module.register_forward_hook(lambda _module, _given, out: shown.__setitem__(key, result(out).numpy()))

    for stage in stages:
        if stage.block:
            kind, index = stage.name.split(".")
            block = f"{kind}.{int(index)}"
            watch(stage.module, block, lambda out: out[0])
            for part in ("attn1", "attn2", "ff"):
                if hasattr(stage.module, part):
                    watch(getattr(stage.module, part), f"{block}.{part}")
    text, positions, embed, _final = (stage.module for stage in stages if not stage.block)
    watch(text, "caption_projection")
    watch(positions, "pos_embed_table", lambda out: out[0][None])
    watch(positions, "temp_pos_embed", lambda out: out[1][None])
    watch(embed, "pos_embed", lambda out: out[0].flatten(0, 1))
    watch(embed.adaln_single, "adaln_single.t6", lambda out: out[0].flatten(1))
    watch(embed.adaln_single, "adaln_single.emb", lambda out: out[1])
    inputs = model_inputs(original, variant)
    run_torch(stages, inputs)
    batch, _, frames, _, _ = inputs["latents"].shape
    for key, value in shown.items():
        if key.endswith(("ff", "attn2")) or key in {f"{kind}.{i}" for kind in original.family.PARTS for i in range(9)}:
            shown[key] = layout(key, value.reshape(batch, frames, -1, value.shape[-1]))
    return shown


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_torch_stages_predict_what_the_original_predicts(name: str, variant: str) -> None:
    original = ORIGINALS[name]
    stages = [stage for stage in original.stages(masked=variant == "spatialmask") if runs_in(variant, stage.name)]
    prediction = run_torch(stages, model_inputs(original, variant))["prediction"]
    assert worst(prediction, original.outputs[f"{variant}.out"]) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "width", "sample_size", "frames", "patch", "size", "eps"),
    [
        (3, 16, 16, 7, 2, (12, 20), 1e-6),
        (2, 12, 128, 3, 2, (8, 30), 1e-2),
        (4, 8, 8, 1, 2, (10, 6), 1e-5),
        (2, 8, 24, 4, 4, (24, 16), 1e-6),
    ],
)
def test_other_sizes_are_as_in_diffusers(
    heads: int, width: int, sample_size: int, frames: int, patch: int, size: tuple[int, int], eps: float
) -> None:
    """Its port of Latte with random weights: other heads, patches and lengths, odd grids, large training sizes."""
    torch.manual_seed(0)
    from diffusers import LatteTransformer3DModel  # here: it imports all transformers of diffusers, which takes seconds

    port = LatteTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=width,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=heads * width,
        attention_bias=True,
        sample_size=sample_size,
        patch_size=patch,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=eps,
        caption_channels=24,
        video_length=frames,
    ).eval()
    for parameter in port.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights, family = port.state_dict(), FAMILIES["latte-1"]
    config = family.config_from(dict(port.config), {key: tuple(value.shape) for key, value in weights.items()})
    stages = family.stages(config)
    for stage in stages:
        stage.module.load_state_dict({name: weights[key] for name, key in stage.keys().items()})
    inputs = {
        "latents": torch.randn(2, 4, frames, *size),
        "timestep": torch.tensor([17.0, 803.0]),
        "captions": torch.randn(2, 5, 24),
        "text_mask": torch.ones(2, 5, dtype=torch.bool),
    }
    with torch.no_grad():
        (expected,) = port(inputs["latents"], inputs["timestep"].long(), inputs["captions"], return_dict=False)
    assert worst(run_torch(stages, inputs)["prediction"], expected.numpy()) <= TOLERANCE


@pytest.fixture(scope="module")
def seen() -> dict[tuple[str, str], Arrays]:
    return {(name, variant): seen_in_torch(ORIGINALS[name], variant) for name in ORIGINALS for variant in MASKS}


MASKS = ("masked", "nomask")


@pytest.mark.parametrize(("name", "key"), HOOKED)
def test_torch_stages_show_what_the_original_shows(seen, name: str, key: str) -> None:
    expected = ORIGINALS[name].outputs[key]
    variant, _, tensor = key.partition(".") if "." in key else (MASKS[0], "", key)  # tables are alike in all of them
    assert worst(seen[name, variant][tensor], expected) <= TOLERANCE


def run_engines(pipeline: Pipeline, inputs: Arrays, variant: str = "") -> Iterator[tuple[str, Arrays]]:
    """Runs a bundle's stages by hand; yields each one's name and outputs."""
    batch, _, frames, height, width = inputs["latents"].shape
    grid = {"patch_frames": frames, "tokens": height * width // PATCH**2}
    sizes = {"batch": batch, "text": inputs["captions"].shape[1], "frames": frames, "height": height, "width": width}
    tensors = dict(inputs)
    for entry in pipeline.bundle.manifest.stages:
        if runs_in(variant, entry.graph.name):
            outputs = run_graph(pipeline.backend, entry.graph, tensors, {**sizes, **grid})
            tensors.update({name.removesuffix(OUT): value for name, value in outputs.items()})
            yield entry.graph.name, outputs


@pytest.mark.parametrize("variant", ["masked", "nomask", "nonsquare", "oneframe", "notemporal"])
def test_engines_predict_what_the_original_predicts(name: str, pipeline: Pipeline, variant: str) -> None:
    original = ORIGINALS[name]
    expected = original.outputs.get(f"{variant}.out")
    if expected is None:
        assert (name, variant) not in VARIANTS
        return
    *_, (_, outputs) = run_engines(pipeline, model_inputs(original, variant), variant)
    assert worst(outputs["prediction"], expected) <= TOLERANCE


@pytest.mark.parametrize("variant", MASKS)
def test_engines_of_all_blocks_show_what_the_original_shows(name: str, pipeline: Pipeline, variant: str) -> None:
    """Probes carry gated residuals, the reference has them before the gate."""
    original, expected = ORIGINALS[name], ORIGINALS[name].outputs
    modulation = expected["masked.adaln_single.t6"]
    count = 0
    for stage, outputs in run_engines(pipeline, model_inputs(original, variant)):
        kind, _, index = stage.partition(".")
        if index:
            block = f"{variant}.{kind}.{int(index)}"
            assert worst(layout(kind, outputs["hidden_out"]), expected[block]) <= TOLERANCE
            count += 1
            if variant == "masked":
                lists = {"spatial": "transformer_blocks", "temporal": "temporal_transformer_blocks"}
                table = original.weights[f"{lists[kind]}.{int(index)}.scale_shift_table"].numpy()
                gates = (modulation.reshape(len(modulation), 6, -1) + table)[:, [2, 5]]
                parts = {part: expected.get(f"{block}.{part}") for part in ("attn1", "attn2", "ff")}
                attn, mlp = (gate_of(gates[:, i], parts[part]) * parts[part] for i, part in enumerate(("attn1", "ff")))
                rest = {"spatial": "cross+mlp", "temporal": "mlp"}[kind]
                assert worst(layout(kind, outputs["attn"]), attn) <= TOLERANCE
                cross = 0 if parts["attn2"] is None else parts["attn2"]
                assert worst(layout(kind, outputs[rest]), mlp + cross) <= TOLERANCE
        elif stage == "text":
            assert worst(outputs["text"], expected["masked.caption_projection"]) <= TOLERANCE
        elif stage == "embed":
            assert worst(outputs["modulation"].reshape(len(modulation), -1), modulation) <= TOLERANCE
            assert worst(outputs["time"], expected["masked.adaln_single.emb"]) <= TOLERANCE
            assert worst(layout(kind, outputs["hidden"]), expected["masked.pos_embed"]) <= TOLERANCE
    assert count == 2 * original.config().num_layers


def gate_of(gate: np.ndarray, like: np.ndarray | None) -> np.ndarray:
    """(B, D) for every row of the original's layout."""
    assert like is not None
    return np.repeat(gate, len(like) // len(gate), axis=0)[:, None]


@pytest.mark.slow
def test_engines_with_open_sora_plans_spatial_mask(tmp_path: Path) -> None:
    """Bundles leave it out; the blocks of its training's variant are exported here by themselves."""
    original = ORIGINALS["open-sora-plan"]
    weights, path = original.weights, tmp_path / "weights.safetensors"
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    locations = write_weights(path, shapes, dict.fromkeys(shapes, "float32"), lambda key: weights[key])
    stages = original.stages(masked=True)
    sizes = {"batch": 2, "frames": 3, "height": 8, "width": 10, "patch_frames": 3, "tokens": 20, "text": 6}
    backend, traced = OrtBackend(tmp_path), {}
    inputs = model_inputs(original, "spatialmask")
    sizes_now = {"batch": 2, "frames": 5, "height": 8, "width": 8, "patch_frames": 5, "tokens": 16, "text": 6}
    tensors = dict(inputs)
    for stage in stages:
        if stage.traced_as not in traced:
            traced[stage.traced_as] = trace(stage, sizes)
        write_graph(tmp_path / f"{stage.name}.onnx", traced[stage.traced_as], stage, path, locations)
        graph = Graph(name=stage.name, path=f"{stage.name}.onnx", inputs=stage.inputs, outputs=stage.outputs)
        outputs = run_graph(backend, graph, tensors, sizes_now)
        tensors.update({key.removesuffix(OUT): value for key, value in outputs.items()})
    assert worst(tensors["prediction"], original.outputs["spatialmask.out"]) <= TOLERANCE


def trajectory(result: Any) -> np.ndarray:
    """The latents after every call."""
    return np.concatenate([result.calls[1:], result.latents[None]])


def test_the_sampling_run_is_the_originals_call_by_call(name: str, pipeline: Pipeline) -> None:
    original = ORIGINALS[name]
    result = pipeline.generate(request(original))
    mine, expected = trajectory(result), original.sampled
    assert [call.timestep for call in result.trace.calls] == expected["timesteps"][: len(mine)].tolist()
    assert len(expected["z"]) - len(mine) == {"latte": 0, "open-sora-plan": 1}[name]
    for ours, theirs in zip(mine, expected["z"], strict=False):
        assert np.linalg.norm(ours - theirs) <= TRAJECTORY * np.linalg.norm(theirs)
    assert np.linalg.norm(mine[-1] - expected["z"][-1]) <= TRAJECTORY * np.linalg.norm(expected["z"][-1])


def test_the_idle_call_changes_nothing(name: str, pipeline: Pipeline) -> None:
    original = ORIGINALS[name]
    without, with_it = (pipeline.generate(request(original, idle_call=idle)) for idle in (False, True))
    np.testing.assert_array_equal(without.latents, with_it.latents)
    more = len(with_it.trace.calls) - len(without.trace.calls)
    assert more == {"latte": 0, "open-sora-plan": 1}[name]
    assert len(with_it.trace.calls) == len(original.sampled["timesteps"])


def test_never_reusing_is_the_same_in_both_granularities_to_the_bit(name: str, pipeline: Pipeline) -> None:
    runs = [
        pipeline.generate(request(ORIGINALS[name], policy=NeverReuse(), granularity=choice, steps=6))
        for choice in ("stack", "block")
    ]
    np.testing.assert_array_equal(runs[0].latents, runs[1].latents)


def test_adacache_measures_the_middle_block_and_runs(name: str, pipeline: Pipeline) -> None:
    original = ORIGINALS[name]
    assert pipeline.bundle.manifest.sites("default") == ("temporal.1.attn",)
    distances = [
        call.observation.get("distance")
        for call in pipeline.generate(request(original, policy=AdaCache(codebook=[(1.0, 1)]))).trace.calls[1:]
    ]
    middle = sorted(distances)[len(distances) // 2]  # so that about every second computed call is reused after
    policy = AdaCache(codebook=[(middle, 3), (1.0, 1)], moreg=MoReg(h0=0.05, exponent=1.0))
    stack, block = (
        pipeline.generate(request(original, policy=policy, granularity=choice)) for choice in ("stack", "block")
    )
    calls = len(stack.trace.calls)
    assert 2 < len(stack.trace.computed()) < calls
    assert stack.trace.computed() == block.trace.computed()
    assert worst(stack.latents, block.latents) <= 1e-4 * np.abs(stack.latents).max()
    full = pipeline.generate(request(original)).latents
    assert not np.array_equal(stack.latents, full)


def test_the_distance_is_that_of_the_probed_residual(name: str, pipeline: Pipeline) -> None:
    """Two calls by hand: the gated temporal attention of both branches, relative to the one before."""
    original = ORIGINALS[name]
    result = pipeline.generate(request(original, policy=AdaCache(codebook=[(1.0, 1)])))
    assert result.calls is not None
    seen = []
    inputs = original.inputs
    for call in range(2):
        twice = np.concatenate([result.calls[call]] * 2)
        given = {
            "latents": twice,
            "timestep": np.full(2, original.sampled["timesteps"][call], np.float32),
            "captions": np.concatenate([inputs["cfg_neg"], inputs["cfg_text"]]),
            "text_mask": np.ones((2, inputs["cfg_text"].shape[1]), bool),
        }
        seen.append(next(outputs["attn"] for stage, outputs in run_engines(pipeline, given) if stage == "temporal.01"))
    expected = np.abs(seen[1] - seen[0]).sum() / np.abs(seen[0]).sum()
    assert result.trace.calls[1].observation.get("distance") == pytest.approx(expected, rel=1e-4)
