"""Whole folders of pipelines, and repositories in the local cache of Hugging Face."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adacache_engines.errors import CheckpointError, InputError
from adacache_export.checkpoint.hub import open_published, repository_of, resolved
from adacache_export.checkpoint.pipeline_folder import merged, open_source

NAMED = {
    "_class_name": "SomePipeline",
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SomeTransformer"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "SomeVae"],
    "boundary_ratio": None,
}


def write_pipeline(folder: Path, **changes: Any) -> Path:
    """Write a folder with all components that the index names; their weights are one tensor, which tells them apart."""
    index = {**NAMED, **changes}
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    named = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    for number, name in enumerate(named):
        (folder / name).mkdir()
        content = {"component": name, "scale_factor_spatial": 16}
        (folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")).write_text(
            json.dumps(content)
        )
        if name.startswith("transformer"):
            weights = folder / name / "diffusion_pytorch_model.safetensors"
            save_file({"weight": torch.full((2,), float(number))}, weights)
    return folder


def test_a_folder_is_opened_by_its_index(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "whole")
    source = open_source(folder)
    (transformer,) = source.transformers
    assert transformer.config == {"component": "transformer", "scale_factor_spatial": 16}
    assert transformer.scheduler == {"component": "scheduler", "scale_factor_spatial": 16}
    assert source.parts == {name: folder / name for name in ("text_encoder", "vae")}
    assert source.configs.vae["component"] == "vae"
    assert source.configs.has("transformer")
    assert not source.configs.has("transformer_2")


def test_two_transformers_are_one_checkpoint_with_each_tensor_once(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "experts", transformer_2=["diffusers", "SomeTransformer"], boundary_ratio=0.875)
    high, low = open_source(folder).transformers
    both = merged({"high.": high, "low.": low})
    assert list(both.tensors) == ["high.weight", "low.weight"]
    assert not both.tensors["high.weight"].equal(both.tensors["low.weight"])
    names = ("transformer/diffusion_pytorch_model.safetensors", "transformer_2/diffusion_pytorch_model.safetensors")
    assert both.file_names() == names
    assert merged({"": high}) is high
    assert both.sha256() != high.sha256()


def test_a_text_encoder_without_a_tokenizer_is_left_out(tmp_path: Path) -> None:
    source = open_source(write_pipeline(tmp_path / "mute", tokenizer=[None, None]))
    assert "text_encoder" not in source.parts
    assert "names no tokenizer" in source.notes[0]


@pytest.mark.parametrize("lost", ["vae", "scheduler", "tokenizer", "transformer"])
def test_a_component_that_is_missing_is_named(lost: str, tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "part")
    for file in (folder / lost).iterdir():
        file.unlink()
    (folder / lost).rmdir()
    with pytest.raises(CheckpointError, match=f"no folder {lost}") as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)
    replacing = {"vae": "vae", "tokenizer": "text_encoder"}
    if lost in replacing:
        assert open_source(folder, replaced=(replacing[lost],)).transformers


def test_a_scheduler_without_its_file_is_refused(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "part")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no file scheduler/scheduler_config\.json"):
        open_source(folder)


def test_weights_of_other_models_beside_a_transformer_are_named(tmp_path: Path) -> None:
    """As in the folders of original repositories."""
    weights = {"weight": torch.zeros(2)}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    for name in ("Some_VAE.pth", "models_t5_enc.pth", "diffusion_pytorch_model.fp16.safetensors"):
        save_file(weights, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    (note,) = open_source(tmp_path).notes
    assert note.startswith("left out Some_VAE.pth, models_t5_enc.pth: ")
    assert open_source(tmp_path / "diffusion_pytorch_model.safetensors").notes == ()


def test_two_experts_of_an_original_repository(tmp_path: Path) -> None:
    for number, name in enumerate(("low_noise_model", "high_noise_model")):
        (tmp_path / name).mkdir()
        save_file({"weight": torch.full((2,), float(number))}, tmp_path / name / "diffusion_pytorch_model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(2)}, tmp_path / "Some_VAE.pth")
    source = open_source(tmp_path)
    assert [float(one.tensors["weight"][0]) for one in source.transformers] == [1, 0]
    assert source.configs.two_experts
    assert source.notes[0].startswith("left out Some_VAE.pth: ")
    assert not open_source(tmp_path / "low_noise_model").configs.two_experts


def test_a_pipeline_of_no_transformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="names no transformer"):
        open_source(write_pipeline(tmp_path / "none", transformer=[None, None]))


# repositories


def test_a_part_of_a_repository_says_how_to_get_the_rest(cache: Path) -> None:
    (cache / "snapshots" / ("a" * 40) / "vae" / "config.json").unlink()
    (cache / "snapshots" / ("a" * 40) / "vae").rmdir()
    with pytest.raises(CheckpointError, match=r"no folder vae.*: hf download some/Tiny-2.1$"):
        open_published(Path("some/Tiny-2.1"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two revisions of a repository."""
    from huggingface_hub import constants

    root = tmp_path / "hub"
    place = root / "models--some--Tiny-2.1"
    for revision, commit in (("main", "a" * 40), ("old", "b" * 40)):
        write_pipeline(place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.chdir(tmp_path)
    return place


@pytest.mark.parametrize("revision", [None, "old"])
def test_a_repository_is_found_by_its_id_and_by_its_folder_in_the_cache(revision: str | None, cache: Path) -> None:
    expected = cache / "snapshots" / (("b" if revision else "a") * 40)
    for source in (Path("some/Tiny-2.1"), cache):
        assert repository_of(source) == "some/Tiny-2.1"
        assert resolved(source, revision).resolve() == expected
    assert "vae" in open_source(resolved(Path("some/Tiny-2.1"))).parts


@pytest.mark.parametrize(("source", "revision"), [("some/Other", None), ("some/Tiny-2.1", "new")])
@pytest.mark.usefixtures("cache")
def test_what_the_cache_does_not_have_is_not_downloaded(source: str, revision: str | None) -> None:
    command = f"hf download {source}" + (f" --revision {revision}" if revision else "")
    with pytest.raises(InputError, match=command) as caught:
        resolved(Path(source), revision)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_a_path_is_itself(tmp_path: Path) -> None:
    for path in (tmp_path, Path("nothing.safetensors"), Path("a/b/c"), Path("/some/Tiny-2.1")):
        assert repository_of(path) is None
        assert resolved(path) == path
    with pytest.raises(InputError, match="--revision main"):
        resolved(tmp_path, "main")
