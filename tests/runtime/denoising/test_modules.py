"""Module granularity: a stage for each residual of a block, the same model, and no more weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adacache_engines.bundle.files import open_bundle
from adacache_engines.errors import InputError
from adacache_export.families.registry import FAMILIES
from adacache_export.stages import run_stages
from adacache_export.verification.examples import example
from adacache_export.verification.verify import verify
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policy import Granularity
from adacache_runtime.caching.presets import policy_from
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Captions, Request
from tests.helpers.originals.reference import arrays, worst
from tests.helpers.originals.reference import request as open_sora_request
from tests.helpers.tiny_models.configurations import SIZES, SMALL
from tests.helpers.tiny_models.exporting import DATA, convert_quietly

ROUNDING = 2e-5  # absolute, between granularities
GRANULARITIES: tuple[Granularity, ...] = ("stack", "block", "module")


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_in_turn_are_the_block_to_the_bit(name: str) -> None:
    family, config = FAMILIES[name], SMALL[name]
    first, *_, last = *family.PARTS, *family.PARTS
    sites = (f"{last}.1.attn", f"{first}.0.attn")
    whole, parts = (family.stages(config, sites, granularity=choice) for choice in ("block", "module"))
    torch.manual_seed(0)
    weights = {key: torch.randn(shape) * 0.2 for key, shape in family.expected(config).items()}
    for stage in (*whole, *parts):
        stage.module.load_state_dict({name: weights[key] for name, key in stage.keys().items()})
    named = {spec.name: example(spec, SIZES) for stage in whole for spec in stage.inputs if not stage.block}
    with torch.no_grad():
        one, other = (run_stages(stages, named | {"text_mask": torch.ones(2, 5) > 0}) for stages in (whole, parts))
    for key in ("prediction", *sites):
        assert torch.equal(one[key], other[key]), key
    count = sum(map(len, family.PARTS.values()))
    assert [stage.name for stage in parts if stage.block][: count + 1] == [
        *(f"{kind}.00.{part}" for kind, some in family.PARTS.items() for part in some),
        f"{first}.01.attn",
    ]
    assert {key for stage in parts for key in stage.keys().values()} == {
        key for stage in whole for key in stage.keys().values()
    }


@pytest.fixture(scope="session")
def latte(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return once("bundle-latte-modules", lambda folder: convert_quietly(DATA / "latte", folder, granularity="module"))


def request(**options: object) -> Request:
    given = arrays(DATA / "latte" / "inputs.npz")
    captions = Captions(given["cfg_text"], np.ones(given["cfg_text"].shape[:2], bool), given["cfg_neg"])
    return Request(**{"captions": captions, "latents": given["noise"], **options})  # type: ignore[arg-type]


@pytest.mark.slow  # the export
def test_weights_are_stored_once(latte: Path, latte_bundle: Callable[[str], Path]) -> None:
    whole, parts = (open_bundle(folder).manifest for folder in (latte_bundle("latte"), latte))
    assert (whole.granularity, parts.granularity) == ("block", "module")
    assert parts.files[parts.weights].nbytes == whole.files[whole.weights].nbytes
    assert len(parts.stages) == 4 + 3 * (3 + 2)


@pytest.mark.slow  # the export
def test_verify_knows_the_granularity(latte: Path) -> None:
    from adacache_export.phases import Progress

    graphs = verify(latte, Progress())
    assert all(graph.check and graph.check.error <= graph.check.tolerance for graph in graphs)


@pytest.mark.slow  # the export
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_sampling_run_is_the_originals(latte: Path, granularity: Granularity) -> None:
    pipeline = Pipeline.open(latte)
    result = pipeline.generate(request(granularity=granularity, keep_calls=True))
    assert result.calls is not None
    expected = arrays(DATA / "latte" / "sample_ddim50.npz")["z"]
    for mine, original in zip([*result.calls[1:], result.latents], expected, strict=True):
        assert np.linalg.norm(mine - original) <= 1e-5 * np.linalg.norm(original)


@pytest.mark.slow  # the export
def test_all_granularities_give_the_same(latte: Path, latte_bundle: Callable[[str], Path]) -> None:
    whole, parts = Pipeline.open(latte_bundle("latte")), Pipeline.open(latte)
    policy = AdaCache(codebook=[(0.3, 3), (1.0, 2)], moreg=MoReg(h0=0.05, exponent=1.0))
    for chosen in (policy, FixedInterval(every=3)):
        asked = {"policy": chosen, "steps": 20}
        results = [parts.generate(request(granularity=choice, **asked)) for choice in GRANULARITIES]
        results += [whole.generate(request(granularity=choice, **asked)) for choice in GRANULARITIES[:2]]
        first = results[0]
        scale = float(np.abs(first.latents).max())
        assert 2 < len(first.trace.computed()) < 20
        for other in results[1:]:
            assert other.trace.computed() == first.trace.computed()
            assert worst(other.latents, first.latents) <= ROUNDING * scale
        assert [len(result.trace.calls[0].compute) for result in results] == [1, 6, 15, 1, 6]


def test_a_bundle_of_blocks_has_no_modules(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="--granularity module"):
        pipeline.generate(open_sora_request(granularity="module", steps=2))
    assert list(pipeline.prepare(open_sora_request()).residual_nbytes()) == ["model", "stack", "first", "block"]


@pytest.mark.slow  # the export
def test_residuals_of_modules_take_more(latte: Path) -> None:
    pipeline = Pipeline.open(latte)
    sizes = pipeline.prepare(request()).residual_nbytes()
    assert sizes["module"] == 15 * sizes["stack"]
    assert sizes["block"] == 6 * sizes["stack"]


def test_sites_are_those_of_modules(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"spatial\.N\.cross, spatial\.N\.mlp, temporal\.N\.attn"):
        convert_quietly(DATA / "latte", tmp_path / "b", granularity="module", probes=("spatial.0.cross+mlp",))


@pytest.mark.parametrize(
    ("preset", "sampled"),
    [
        ("pab1", "sample_pab1"),
        ("tgate", "sample_tgate"),
        ("delta-dit", "sample_deltadit_fixed"),
        ("delta-dit-as-released", "sample_deltadit_asis"),
    ],
)
@pytest.mark.slow  # the export
def test_published_schedules_give_the_originals_latents(latte: Path, preset: str, sampled: str) -> None:
    pipeline = Pipeline.open(latte)
    policy = policy_from(preset, pipeline.bundle.manifest.policies)
    result = pipeline.generate(request(policy=policy, granularity="module", keep_calls=True))
    assert result.calls is not None
    assert not all(all(call.compute) for call in result.trace.calls)
    expected = arrays(DATA / "latte" / f"{sampled}.npz")["z"]
    for mine, original in zip([*result.calls[1:], result.latents], expected, strict=True):
        assert np.linalg.norm(mine - original) <= 1e-5 * np.linalg.norm(original)
