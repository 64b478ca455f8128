import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint
from adacache_export.families.open_sora.family import OpenSoraConfig
from adacache_export.families.registry import FAMILIES, Family, recognise

DATA = Path(__file__).parents[3] / "tests" / "data" / "open-sora"
FAMILY = FAMILIES["open-sora-1.2"]
SMALL = OpenSoraConfig(
    in_channels=3,
    patch_size=(1, 2, 2),
    hidden_size=32,
    depth=2,
    num_heads=4,
    mlp_ratio=3.0,
    caption_channels=24,
    model_max_length=7,
)
JSON = {
    "in_channels": 3,
    "patch_size": [1, 2, 2],
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 3.0,
    "pred_sigma": True,
    "caption_channels": 24,
    "model_max_length": 7,
    "input_sq_size": 512,
}
SHAPES = FAMILY.expected(SMALL)
expected = functools.cache(FAMILY.expected)  # what it gives must not be changed


def refusal(given: dict[str, Any] | None, shapes: dict[str, tuple[int, ...]] = SHAPES) -> str:
    with pytest.raises(CheckpointError) as caught:
        FAMILY.config_from(given, shapes)
    return str(caught.value)


def test_the_reference_checkpoint() -> None:
    checkpoint = open_checkpoint(DATA / "weights_A.safetensors")
    family = recognise(checkpoint.tensors)
    assert family.NAME == "open-sora-1.2"
    published = json.loads((DATA / "config_A.json").read_text())
    inferred = family.config_from(None, checkpoint.shapes())
    assert family.config_from(published, checkpoint.shapes()) == replace(
        inferred, input_sq_size=published["input_sq_size"]
    )
    check(checkpoint, family.expected(inferred), family.OPTIONAL_KEYS, family.constants(inferred))


def test_the_published_size() -> None:
    shapes = FAMILY.expected(OpenSoraConfig())
    assert len(shapes) == 973
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_207_643_972 + 1_228_800
    assert FAMILY.config_from(None, shapes) == OpenSoraConfig()


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, pred_sigma=False, patch_size=(2, 1, 4)), replace(SMALL, mlp_ratio=2.6, depth=1)]
)
def test_expected_is_what_the_stages_load(config: OpenSoraConfig) -> None:
    loaded: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        for stage in FAMILY.stages(config):
            shapes = {name: tuple(value.shape) for name, value in stage.module.named_parameters()}
            loaded |= {key: shapes[name] for name, key in stage.keys().items()}
    expected = FAMILY.expected(config)
    beside = {key: expected.pop(key) for key in ("y_embedder.y_embedding", "rope.freqs")}
    assert loaded == expected
    assert beside == {"y_embedder.y_embedding": (7, 24), "rope.freqs": (4,)}


@settings(max_examples=60)
@given(
    heads=st.integers(1, 6),
    head_width=st.sampled_from([4, 8, 12, 72]),
    depth=st.integers(1, 12),
    rows=st.integers(1, 5000),
    patch=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 16),
    pred_sigma=st.booleans(),
)
def test_the_configuration_is_read_off_the_shapes(
    heads: int,
    head_width: int,
    depth: int,
    rows: int,
    patch: tuple[int, int, int],
    channels: int,
    pred_sigma: bool,
) -> None:
    width = heads * head_width
    ratio = next(value for value in (rows / width, math.nextafter(rows / width, 1e9)) if int(width * value) == rows)
    config = OpenSoraConfig(512, channels, patch, width, depth, heads, ratio, pred_sigma, 10, 20)
    assert FAMILY.config_from(None, FAMILY.expected(config)) == config


def test_config_json_adds_what_shapes_cannot_tell() -> None:
    assert FAMILY.config_from(JSON, SHAPES) == SMALL
    assert FAMILY.config_from({**JSON, "input_sq_size": 32}, SHAPES) == replace(SMALL, input_sq_size=32)
    assert FAMILY.config_from({"input_sq_size": 32}, SHAPES) == replace(SMALL, input_sq_size=32)


def test_unknown_keys_are_ignored() -> None:
    extra = {"freeze_y_embedder": True, "torch_dtype": "float32", "qk_norm": True, "skip_y_embedder": False}
    assert FAMILY.config_from({**JSON, **extra}, SHAPES) == SMALL


def test_a_ratio_that_gives_the_same_rows_is_no_contradiction() -> None:
    assert FAMILY.config_from({**JSON, "mlp_ratio": 3.01}, SHAPES).mlp_ratio == 3.01
    assert FAMILY.config_from({**JSON, "mlp_ratio": 3}, SHAPES).mlp_ratio == 3.0


@pytest.mark.parametrize(
    ("field", "value", "actual"),
    [
        ("hidden_size", 64, "32"),
        ("depth", 28, "2"),
        ("depth", 10**8, "2"),
        ("num_heads", 8, "4"),
        ("mlp_ratio", 4.0, "3.0"),
        ("patch_size", [1, 1, 1], "(1, 2, 2)"),
        ("in_channels", 4, "3"),
        ("pred_sigma", False, "True"),
        ("caption_channels", 4096, "24"),
        ("model_max_length", 300, "7"),
    ],
)
def test_a_contradiction_names_both_values(field: str, value: Any, actual: str) -> None:
    (line,) = (line for line in refusal({**JSON, field: value}).splitlines() if line.startswith(f"  {field} "))
    assert str(value) in line
    assert actual in line.replace(str(value), "", 1)


def test_contradictions_and_refusals_are_told_at_once() -> None:
    message = refusal({**JSON, "depth": 3, "num_heads": 2, "qk_norm": False})
    assert "depth is 3" in message
    assert "num_heads is 2" in message
    assert "qk_norm is false" in message


@pytest.mark.parametrize(("key", "value"), [("qk_norm", False), ("skip_y_embedder", True), ("qk_norm_legacy", True)])
def test_variants_that_cannot_be_exported(key: str, value: bool) -> None:
    message = refusal({**JSON, key: value})
    assert f"{key} is {str(value).lower()}" in message
    assert "not supported" in message
    assert FAMILY.config_from({**JSON, key: not value}, SHAPES) == SMALL


@pytest.mark.parametrize("field", list(JSON))
@pytest.mark.parametrize("value", [None, "28", -1, 0, [1], [1, 2, "2"], {}, float("nan"), 1e300, [True, 2, 2]])
def test_nonsense_in_config_json(field: str, value: Any) -> None:
    assert field in refusal({**JSON, field: value})


def test_an_impossible_size() -> None:
    assert "hidden_size 36" in refusal(None, FAMILY.expected(replace(SMALL, hidden_size=36)))


def test_recognises_by_keys_and_not_by_order() -> None:
    assert recognise(reversed(list(SHAPES))) is FAMILY


def test_an_unknown_checkpoint_is_told_what_was_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        NAME, SIGNATURE_KEYS, OPTIONAL_KEYS = "other-1", ("a", "b", "c", "d"), ()

    other: Family = Other()  # type: ignore[assignment]
    monkeypatch.setitem(FAMILIES, "other-1", other)
    assert recognise(["a", "b", "c", "d", "e"]) is other
    with pytest.raises(CheckpointError) as caught:
        recognise(["a", "b", "c", "x"])
    lines = str(caught.value).splitlines()
    closest = next(index for index, line in enumerate(lines) if line.strip() == "other-1: lacks d")
    farther = next(index for index, line in enumerate(lines) if line.strip().startswith("open-sora-1.2: lacks"))
    assert closest < farther
    for key in FAMILY.SIGNATURE_KEYS:
        assert key in lines[farther]
    with pytest.raises(CheckpointError, match=r"open-sora-1\.2"):
        recognise([])


@pytest.mark.parametrize("gone", [key for key in SHAPES if key not in (*FAMILY.SIGNATURE_KEYS, "rope.freqs")])
def test_one_missing_tensor_is_the_one_that_is_named(gone: str) -> None:
    """Also where it is one of those that the configuration is read off."""
    tensors = {name: torch.zeros(shape) for name, shape in SHAPES.items() if name not in (gone, "rope.freqs")}
    checkpoint = Checkpoint(tensors, (Path("a.ckpt"),))
    config = recognise(tensors).config_from(None, checkpoint.shapes())
    with pytest.raises(CheckpointError) as caught:
        check(checkpoint, expected(config), FAMILY.OPTIONAL_KEYS, FAMILY.constants(config))
    assert f"    {gone}, expected" in str(caught.value)
    assert "1 tensor missing" in str(caught.value)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 0), (3, 3), (1, 1, 1, 1, 1), (0, 0, 0, 0, 0)])
@pytest.mark.parametrize("key", [key for key in SHAPES if "blocks.1" not in key])
def test_odd_shapes_end_in_one_kind_of_error(key: str, shape: tuple[int, ...]) -> None:
    shapes = {**SHAPES, key: shape}
    for given_config in (None, JSON):
        try:
            config = FAMILY.config_from(given_config, shapes)
        except CheckpointError:
            continue
        assert expected(config)[key] != shape or config != SMALL


def small_tensors(freqs: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = {name: torch.zeros(shape) for name, shape in SHAPES.items() if name != "rope.freqs"}
    return tensors if freqs is None else {**tensors, "rope.freqs": freqs}


def published_freqs(theta: float = 10000.0) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, 8, 2).float() / 8)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_rotary_angles_may_be_stored_in_any_precision_or_not_at_all(dtype: torch.dtype | None) -> None:
    tensors = small_tensors(None if dtype is None else published_freqs().to(dtype))
    check(Checkpoint(tensors, (Path("a"),)), SHAPES, FAMILY.OPTIONAL_KEYS, FAMILY.constants(SMALL))


@pytest.mark.parametrize("freqs", [published_freqs(10200.0), published_freqs() / 2, published_freqs().flip(0)])
def test_other_rotary_angles_are_refused(freqs: torch.Tensor) -> None:
    checkpoint = Checkpoint(small_tensors(freqs), (Path("a"),))
    with pytest.raises(CheckpointError, match=r"rope\.freqs"):
        check(checkpoint, SHAPES, FAMILY.OPTIONAL_KEYS, FAMILY.constants(SMALL))
