"""Text encoders and VAEs that are added to a bundle later: the same as with the model, whole or not at all."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file, save_file

from adacache_engines.bundle.files import open_bundle, read_manifest, replace_manifest, sha256_file
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import CheckpointError, EngineError, InputError
from adacache_engines.tensorrt.plans import ENGINES, check_plans, find
from adacache_export.commands.export import main as export
from adacache_export.frame_rules import FIRST_THEN_FOURS
from adacache_export.options import PartOptions
from adacache_export.parts import add_parts as adding_parts
from adacache_export.parts.add_parts import Added, add_parts
from adacache_export.phases import Progress
from adacache_export.stages import Stage
from adacache_export.tracing import graphs
from adacache_export.tracing.trace import trace
from adacache_export.verification.verify import verify
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from tests.helpers.gpu import fake_tensorrt

pytestmark = pytest.mark.slow  # an export with both parts
TRACED: dict[tuple[str, torch.dtype], ir.Model] = {}
NORM = "encoder.final_layer_norm.weight"
Once = Callable[[str, Callable[[Path], object]], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All encoders here have one shape, as all VAEs. Logs are not collected: that takes longer than tracing."""

    def trace_once(stage: Stage, sizes: Mapping[str, int]) -> ir.Model:
        key = (stage.traced_as, next(stage.module.parameters()).dtype)
        if key not in TRACED:
            TRACED[key] = trace(stage, sizes)
        return TRACED[key]

    monkeypatch.setattr(graphs, "trace", trace_once)
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def take_parts_out(folder: Path) -> None:
    """Leave of a bundle what the export of the model alone leaves."""
    manifest = read_manifest(folder)
    latent = {"decoder": "none", "decoder_config": None, "decoding": (), "encoding": ()}
    text = {"tokenizer": None, "encoder_stages": (), "encoder_config": None}
    changes = {
        "latent": manifest.latent.model_copy(update=latent),
        "text": manifest.text.model_copy(update=text),
        "part_weights": {},
        "files": {path: entry for path, entry in manifest.files.items() if path.startswith("onnx/")},
    }
    for path in manifest.part_weights.values():
        shutil.rmtree((folder / path).parent)
    replace_manifest(folder, manifest.model_copy(update=changes))


@pytest.fixture(scope="module")
def decoding_folder(half_latte: Path) -> Path:
    """Exported with its parts, not one to which they were added."""
    return half_latte


@pytest.fixture
def bare(decoding_folder: Path, tmp_path: Path) -> Path:
    """The reference Latte without parts, to change."""
    folder = Path(shutil.copytree(decoding_folder, tmp_path / "bare.adacache"))
    take_parts_out(folder)
    open_bundle(folder)
    return folder


@pytest.fixture
def whole(decoding_folder: Path, tmp_path: Path) -> Path:
    """The reference Latte with both parts, to change."""
    return Path(shutil.copytree(decoding_folder, tmp_path / "whole.adacache"))


@pytest.fixture
def other_t5(t5_folder: Path, tmp_path: Path) -> Path:
    """Another encoder of the same shape."""
    shutil.copytree(t5_folder.parent, tmp_path / "t5")
    folder = tmp_path / "t5" / t5_folder.name
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value[..., ::-1].copy() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def content(folder: Path) -> dict[str, str]:
    """Every file and its hash."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def add_text(folder: Path, encoder: Path) -> Added:
    return add_parts(folder, PartOptions(text_encoder=encoder), Progress())


def test_the_same_as_with_the_model(bare: Path, decoding_folder: Path, t5_folder: Path, vae_folder: Path) -> None:
    assert export([str(bare), "--text-encoder", str(t5_folder), "--vae", str(vae_folder)]) == 0
    assert read_manifest(bare) == read_manifest(decoding_folder)
    assert content(bare) == content(decoding_folder)


def test_one_after_the_other(bare: Path, decoding_folder: Path, t5_folder: Path, vae_folder: Path) -> None:
    before = open_bundle(bare).manifest
    added = add_text(bare, t5_folder)
    assert [graph.name for graph in added.graphs] == ["encoder.embed", "encoder.00", "encoder.01", "encoder.final"]
    between = open_bundle(bare).manifest
    assert between.latent == before.latent
    assert between.stages == before.stages
    add_parts(bare, PartOptions(vae=vae_folder), Progress())
    assert content(bare) == content(decoding_folder)


def test_another_takes_its_place(whole: Path, other_t5: Path, t5_folder: Path, capsys: Capture) -> None:
    request = Request(prompts=("a red circle",), steps=2, seed=3)
    before, old = Pipeline.open(whole).generate(request).latents, read_manifest(whole)
    assert export([str(whole), "--text-encoder", str(other_t5)]) == 0
    assert "encoder.final" in capsys.readouterr().out
    new = open_bundle(whole).manifest
    assert (new.latent, new.stages, new.weights) == (old.latent, old.stages, old.weights)
    assert {*content(whole)} == {*new.files, "manifest.json"}, "nothing of the old one is left"
    after = Pipeline.open(whole).generate(request).latents
    assert np.abs(after - before).max() > 1e-2
    assert all(graph.check and graph.check.error <= graph.check.tolerance for graph in verify(whole, Progress()))
    add_text(whole, t5_folder)
    assert read_manifest(whole) == old
    np.testing.assert_array_equal(Pipeline.open(whole).generate(request).latents, before)


def test_the_same_again_changes_nothing(whole: Path, t5_folder: Path) -> None:
    before = content(whole)
    assert add_text(whole, t5_folder).dropped == 0
    assert content(whole) == before


def test_bfloat16(bare: Path, t5_folder: Path, vae_folder: Path, whole: Path) -> None:
    halves = PartOptions(text_encoder=t5_folder, text_precision="bf16", vae=vae_folder, vae_precision="bf16")
    add_parts(bare, halves, Progress())
    half, full = open_bundle(bare).manifest, read_manifest(whole)
    assert (half.text.precision, half.latent.precision) == ("bf16", "bf16")
    assert (full.text.precision, full.latent.precision) == ("fp32", "fp32")
    for part, weights in half.part_weights.items():
        assert half.files[weights].nbytes < 0.75 * full.files[full.part_weights[part]].nbytes
    checks = {graph.name: graph.check for graph in verify(bare, Progress())}
    assert all(check and check.error <= check.tolerance for check in checks.values())
    decoder = checks["decoder"]
    assert decoder
    assert decoder.error > 1e-3  # against float32


# what fails, or is stopped


def spoil(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[NORM][0] = np.nan
    save_file(tensors, folder / "model.safetensors")


def test_a_spoiled_part_changes_nothing(whole: Path, other_t5: Path, vae_folder: Path, capsys: Capture) -> None:
    before = content(whole)
    spoil(other_t5)
    assert export([str(whole), "--text-encoder", str(other_t5), "--vae", str(vae_folder)]) == 1
    assert "1 NaN" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="is not a folder"):
        add_text(whole, other_t5 / "missing")
    assert content(whole) == before


def test_stopped_before_the_manifest(whole: Path, other_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(whole)

    def stop(_folder: Path, _manifest: Manifest) -> None:
        assert len(list(whole.glob("text_encoder-*"))) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(adding_parts, "replace_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        add_text(whole, other_t5)
    assert content(whole) == before


def test_a_disagreeing_engine_changes_nothing(
    whole: Path, other_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before = content(whole)
    monkeypatch.setattr("adacache_export.text_encoders.t5.encoder.TOLERANCE", 0.0)
    assert export([str(whole), "--text-encoder", str(other_t5)]) == 1
    assert "these engines disagree" in capsys.readouterr().err
    assert content(whole) == before


def test_what_a_killed_one_left_is_swept(whole: Path, t5_folder: Path) -> None:
    before = content(whole)
    for name in (".text_encoder.abc.partial", "vae-0123456789ab"):
        (whole / name).mkdir()
        (whole / name / "weights.safetensors").write_bytes(b"half")
    (whole / "vae-mine").mkdir()
    open_bundle(whole)  # as it is
    add_text(whole, t5_folder)
    assert content(whole) == before
    assert (whole / "vae-mine").is_dir()


def test_policies_that_came_meanwhile_stay(whole: Path, other_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = iter([read_manifest(whole)])

    def swept(folder: Path) -> None:
        for manifest in read:  # the first time
            presets = {**manifest.policies, "mine": next(iter(manifest.policies.values()))}
            replace_manifest(folder, manifest.model_copy(update={"policies": presets}))

    assert read_manifest(whole).policies
    monkeypatch.setattr(adding_parts, "_sweep", swept)
    add_text(whole, other_t5)
    assert "mine" in read_manifest(whole).policies


REFUSED: dict[str, tuple[list[str], str]] = {
    "an option of checkpoints": (["--text-encoder", "t5", "--probe", "temporal.0.attn"], "--probe belongs to the"),
    "nothing to add": ([], "add parts with --text-encoder, --image-encoder, --vae or --signal"),
    "precision of nothing": (["--text-precision", "bf16", "--vae", "vae"], "give --text-encoder DIR, too"),
    "precision of no VAE": (["--vae-precision", "bf16", "--text-encoder", "t5"], "give --vae DIR, too"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, decoding_folder: Path, capsys: Capture) -> None:
    options, message = REFUSED[case]
    assert export([str(decoding_folder), *options]) == 1
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_part_that_does_not_fit(whole: Path, vae_folder: Path) -> None:
    manifest = read_manifest(whole)
    latent = manifest.latent.model_copy(update={"frames": FIRST_THEN_FOURS})
    replace_manifest(whole, manifest.model_copy(update={"latent": latent}))
    with pytest.raises(InputError, match="are other latent frames to AutoencoderKL"):
        add_parts(whole, PartOptions(vae=vae_folder), Progress())


# compiled plans


@pytest.fixture
def compiled(whole: Path) -> Path:
    """With plans that no library could run."""
    replace_manifest(whole, fake_tensorrt.write_plans(open_bundle(whole)).manifest)
    return whole


def test_plans_of_what_stays_are_kept(compiled: Path, other_t5: Path, capsys: Capture) -> None:
    (name,) = read_manifest(compiled).plans
    (old,) = read_manifest(compiled).plans.values()
    assert export([str(compiled), "--text-encoder", str(other_t5)]) == 0
    assert "4 compiled plans of what was replaced are gone" in capsys.readouterr().out
    bundle = open_bundle(compiled)
    (new,) = bundle.manifest.plans.values()
    assert new.plans == tuple(entry for entry in old.plans if not entry.stage.startswith("encoder."))
    check_plans(bundle, new)
    files = {path.stem for path in (compiled / ENGINES / name).iterdir()}
    assert files == {graph.name for graph in bundle.manifest.graphs()} - {
        f"encoder.{x}" for x in ("embed", "00", "01", "final")
    }
    assert find(new, "decoder").stage == "decoder"
    with pytest.raises(EngineError, match=r"none for encoder\.embed .*--backend tensorrt-rtx, and the profiles"):
        find(new, "encoder.embed")


def test_the_same_encoder_keeps_its_plans(compiled: Path, t5_folder: Path) -> None:
    before = content(compiled)
    assert add_text(compiled, t5_folder).dropped == 0
    assert content(compiled) == before
