"""Files that belong together: shards with their index, Hugging Face folders, and the hash of all of them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from adacache_export.checkpoint import open_checkpoint
from tests.helpers.tiny_models.checkpoints import NAMES, SHAPE, assert_same, make_tensors, refusal, save


# Sharded sets
def make_shards(folder: Path, suffix: str = ".safetensors", stem: str = "model") -> Path:
    stems = {".safetensors": stem, ".bin": "pytorch_model"}
    tensors = make_tensors()
    shards = [f"{stems[suffix]}-{part:05d}-of-00002{suffix}" for part in (1, 2)]
    weight_map = {name: shards[position % 2] for position, name in enumerate(NAMES)}
    for shard in shards:
        save({name: tensors[name] for name in NAMES if weight_map[name] == shard}, folder / shard)
    index = folder / f"{stems[suffix]}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("given_as", ["index", "folder", "shard"])
def test_a_sharded_set_opens_by_index_folder_or_shard(tmp_path: Path, suffix: str, given_as: str) -> None:
    index = make_shards(tmp_path, suffix)
    shards = tuple(sorted(tmp_path.glob(f"*{suffix}")))
    checkpoint = open_checkpoint({"index": index, "folder": tmp_path, "shard": shards[1]}[given_as])
    assert_same(checkpoint, make_tensors())
    assert checkpoint.files == shards


@pytest.mark.parametrize("given_as", ["folder", "shard"])
def test_shards_of_a_variant_have_an_index_of_their_own(tmp_path: Path, given_as: str) -> None:
    """diffusers saves ``variant="fp16"`` under such names."""
    index = make_shards(tmp_path)
    content = index.read_text().replace("model-", "model.fp16-")
    index.with_suffix(".fp16.json").write_text(content)
    index.unlink()
    shards = [
        shard.rename(shard.with_name(shard.name.replace("-", ".fp16-", 1))) for shard in tmp_path.glob("*.safetensors")
    ]
    assert_same(open_checkpoint({"folder": tmp_path, "shard": shards[0]}[given_as]), make_tensors())


def edit_index(index: Path, name: str, shard: object) -> None:
    content = json.loads(index.read_text())
    content["weight_map"][name] = shard
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret", "..", "a/b.safetensors", "..\\b", "", None])
def test_an_index_never_leads_out_of_its_folder(tmp_path: Path, name: str | None) -> None:
    index = make_shards(tmp_path / "set")
    save({NAMES[0]: torch.zeros(SHAPE)}, tmp_path / "secret.safetensors")
    save({NAMES[0]: torch.zeros(SHAPE)}, tmp_path / "set" / "a" / "b.safetensors")
    edit_index(index, NAMES[0], name)
    message = refusal(index)
    assert str(index) in message
    if name is not None:
        assert "outside its folder" in message


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    index = make_shards(tmp_path)
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    message = refusal(index)
    assert "model-00001-of-00002" in message
    assert "model-00002-of-00002" in message


def test_an_index_that_disagrees_with_its_shards(tmp_path: Path) -> None:
    index = make_shards(tmp_path)
    edit_index(index, NAMES[0], "model-00002-of-00002.safetensors")
    edit_index(index, "ghost", "model-00001-of-00002.safetensors")
    message = refusal(index)
    assert f"{NAMES[0]} should be in model-00002" in message
    assert f"{NAMES[0]} is in model-00001" in message
    assert "ghost should be in model-00001" in message


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 10000])
def test_an_invalid_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(tmp_path / "model.safetensors.index.json")
    assert "model.safetensors.index.json" in refusal(tmp_path)


def test_a_shard_without_its_index(tmp_path: Path) -> None:
    make_shards(tmp_path).unlink()
    assert "index" in refusal(tmp_path / "model-00001-of-00002.safetensors")


def test_shards_may_be_links_as_in_a_download_cache(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "snapshot")
    for shard in list(index.parent.glob("*.safetensors")):
        blob = tmp_path / f"blob-{shard.stem}"
        shard.rename(blob)
        shard.symlink_to(blob)
    assert_same(open_checkpoint(index), make_tensors())


# Folders
CONFIG, SCHEDULER = {"depth": 28, "architectures": ["STDiT3"]}, {"_class_name": "DDIMScheduler", "beta_start": 1e-4}


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin", "shards"],
)
@pytest.mark.parametrize("inside", ["", "transformer"])
def test_a_hugging_face_folder(tmp_path: Path, name: str, inside: str) -> None:
    folder = tmp_path / inside
    if name == "shards":
        make_shards(folder, stem="diffusion_pytorch_model")
    else:
        save(make_tensors(), folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    checkpoint = open_checkpoint(tmp_path)
    assert_same(checkpoint, make_tensors())
    assert checkpoint.config == CONFIG
    assert checkpoint.scheduler == SCHEDULER


def test_a_pipeline_folder_has_its_scheduler_in_a_folder(tmp_path: Path) -> None:
    save(make_tensors(), tmp_path / "transformer" / "model.safetensors")
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    assert open_checkpoint(tmp_path).scheduler == SCHEDULER


def test_safetensors_before_pickles(tmp_path: Path) -> None:
    save(make_tensors(1), tmp_path / "pytorch_model.bin")
    save(make_tensors(2), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert_same(open_checkpoint(tmp_path), make_tensors(2))


def test_config_beside_counts_where_it_can_belong_to_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    mine = save(make_tensors(), tmp_path / "mine.ckpt")
    assert open_checkpoint(mine).config == open_checkpoint(tmp_path).config == CONFIG
    assert open_checkpoint(save(make_tensors(), tmp_path / "model.safetensors")).config == CONFIG
    assert open_checkpoint(mine).config is None


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no files" in refusal(tmp_path)


def test_a_folder_with_config_but_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "config.json but no weights" in refusal(tmp_path)


def test_a_folder_without_config_names_what_can_be_passed(tmp_path: Path) -> None:
    save(make_tensors(), tmp_path / "ema.pt")
    make_shards(tmp_path / "model", ".bin")
    message = refusal(tmp_path)
    assert "ema.pt" in message
    assert "model/" in message
    save(make_tensors(), tmp_path / "model.safetensors")
    assert "model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00"])
def test_an_invalid_config(tmp_path: Path, name: str, content: bytes) -> None:
    save(make_tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refusal(tmp_path)


# Hashes
def test_sha256_of_a_file_is_what_other_tools_print(tmp_path: Path) -> None:
    path = save({"x": torch.randn(1 << 20)}, tmp_path / "a.pt")
    done: list[int] = []
    checkpoint = open_checkpoint(path)
    assert checkpoint.sha256(done.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert done == sorted(done)
    assert len(done) > 1
    assert done[-1] == path.stat().st_size == checkpoint.file_bytes()


def test_sha256_of_shards_covers_every_shard(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    checkpoint = open_checkpoint(index)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in checkpoint.files]
    digest = checkpoint.sha256()
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert open_checkpoint(tmp_path / "b").sha256() == digest
    save({name: torch.zeros(SHAPE) for name in NAMES[1::2]}, tmp_path / "b" / "model-00002-of-00002.safetensors")
    assert open_checkpoint(tmp_path / "b").sha256() != digest
