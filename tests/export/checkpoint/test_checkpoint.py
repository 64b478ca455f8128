import hashlib
import json
import os
import pickle
import re
import shutil
import threading
import time
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint

SHAPE = (6, 10)
NAMES = tuple(f"blocks.{index}.weight" for index in range(4))
EXPECTED = dict.fromkeys(NAMES, SHAPE)


def make_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SHAPE, generator=generator) for name in NAMES}


def save(tree: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tree, path)
    else:
        torch.save(tree, path)
    return path


def assert_same(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensors[name], tensor), name


def refusal(path: Path, weights: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, weights)
    return str(caught.value)


# Formats


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.pth", "a.bin", "a.safetensors", "no_suffix"])
def test_opens_each_format(tmp_path: Path, name: str) -> None:
    path = save(make_tensors(), tmp_path / name)
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, make_tensors())
    assert checkpoint.shapes() == EXPECTED
    assert checkpoint.files == (path,)
    assert checkpoint.config is None
    assert checkpoint.scheduler is None
    assert checkpoint.notes == ()


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = save(make_tensors(), tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert_same(open_checkpoint(path), make_tensors())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_dtypes_are_kept(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tensors = {key: tensor.to(dtype) for key, tensor in make_tensors().items()}
    checkpoint = open_checkpoint(save(tensors, tmp_path / name))
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {dtype}
    assert_same(checkpoint, tensors)
    check(checkpoint, EXPECTED)


def anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory accounts")
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_opening_and_checking_hold_no_copy_of_the_weights(tmp_path: Path, name: str) -> None:
    tensors = {"one": torch.ones(32 << 20, dtype=torch.float16), "two": torch.ones(8, 1 << 20)}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    tensors["one"][-1] = float("nan")  # counting the bad values must not need a mask of the whole tensor either
    path = save(tensors, tmp_path / name)  # 96 MB
    del tensors
    check(open_checkpoint(save({"x": torch.ones(8)}, tmp_path / "warm.pt")), {"x": (8,)})
    before, most, stop = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, anonymous_bytes())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        checkpoint = open_checkpoint(path)
        with pytest.raises(CheckpointError, match="1 NaN"):
            check(checkpoint, shapes)
        checkpoint.sha256()
    finally:
        stop.set()
        watcher.join()
    assert most - before < 16 << 20


# Code in a checkpoint


class MakesFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "pickle protocol 0"])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, kind: str, suffix: str) -> None:
    made, path = tmp_path / "made", tmp_path / f"evil{suffix}"
    tree = {**make_tensors(), "evil": MakesFolder(made)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps({"evil": MakesFolder(made)}, protocol=0 if "0" in kind else 4))
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(path)
    assert not made.exists()
    assert str(path) in message
    if kind == "zip" and suffix == ".safetensors":
        assert "rename" in message
    elif kind == "zip":
        assert f"{os.mkdir.__module__}.mkdir" in message
        assert "weights_only" not in message  # torch's advice is to switch the protection off
        torch.load(path, weights_only=False)
        assert made.exists()  # so the file would have done it


def test_ordinary_objects_beside_the_weights_are_named(tmp_path: Path) -> None:
    message = refusal(save({"model": make_tensors(), "args": Namespace(lr=1)}, tmp_path / "a.pt"))
    assert "argparse.Namespace" in message
    assert "save" in message


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    assert "Linear" in refusal(save(torch.nn.Linear(2, 2), tmp_path / "a.pt"))


def test_legacy_format_of_plain_tensors_is_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save(make_tensors(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    message = refusal(tmp_path / "a.pt")
    assert "PyTorch before 1.6" in message
    assert "safetensors" in message


# Damaged and foreign files

WHOLE: dict[str, bytes] = {}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    for suffix in ("pt", "safetensors"):
        WHOLE[suffix] = save(make_tensors(), folder / f"whole.{suffix}").read_bytes()
    return folder


@settings(max_examples=150)
@given(suffix=st.sampled_from(["pt", "safetensors"]), part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(damaged: Path, suffix: str, part: float) -> None:
    path = damaged / f"short.{suffix}"
    path.write_bytes(WHOLE[suffix][: int(part * len(WHOLE[suffix]))])
    assert str(path) in refusal(path)


@settings(max_examples=400)
@given(
    suffix=st.sampled_from(["pt", "safetensors"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=8),
    where=st.sampled_from(["start", "end", "anywhere"]),
)
def test_changed_bytes_open_or_are_refused_and_raise_nothing_else(
    damaged: Path, suffix: str, flips: list[tuple[int, int]], where: str
) -> None:
    data = bytearray(WHOLE[suffix])
    span = len(data) if where == "anywhere" else 800  # header or pickle first, a zip's directory last
    for position, bits in flips:
        index = position % span
        data[len(data) - 1 - index if where == "end" else index] ^= bits
    path = damaged / f"changed.{suffix}"
    path.write_bytes(data)
    try:
        check(open_checkpoint(path), EXPECTED)
    except CheckpointError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "begins with"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "header"),
    ],
)
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_files_of_another_kind(tmp_path: Path, content: bytes, says: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert name in message
    if name == "a.ckpt" or content.startswith((b"version", b"\x00")):
        assert says in message


def test_safetensors_with_a_tensor_beyond_the_end(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "a.safetensors" in refusal(tmp_path / "a.safetensors")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    whole, packed = save(make_tensors(), tmp_path / "a.pt"), tmp_path / "b.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "compressed" in refusal(packed)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing.ckpt")


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


# Containers


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {"model": tensors, "epoch": 3},
        lambda tensors: {"ema": {"module": tensors}},
        lambda tensors: {"module": {"state_dict": prefixed("module.model.", tensors)}},
        lambda tensors: prefixed("module.", tensors),
        lambda tensors: prefixed("_orig_mod.", tensors),
        lambda tensors: prefixed("model.", tensors),
        lambda tensors: prefixed("ema.", tensors),
        lambda tensors: {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()},
    ],
)
def test_containers_and_prefixes_are_unwrapped(tmp_path: Path, wrap: object) -> None:
    checkpoint = open_checkpoint(save(wrap(make_tensors()), tmp_path / "a.pt"))  # type: ignore[operator]
    assert_same(checkpoint, make_tensors())
    assert not any(tensor.requires_grad for tensor in checkpoint.tensors.values())


def test_prefixes_in_safetensors(tmp_path: Path) -> None:
    assert_same(open_checkpoint(save(prefixed("model.", make_tensors()), tmp_path / "a.safetensors")), make_tensors())


@pytest.mark.parametrize("nested", [True, False])
def test_the_moving_average_is_taken_unless_told_otherwise(tmp_path: Path, nested: bool) -> None:
    raw, ema = make_tensors(1), make_tensors(2)
    tree = {"model": raw, "ema": ema} if nested else {**prefixed("model.", raw), **prefixed("ema.", ema)}
    path = save({**tree, "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 7}, tmp_path / "a.ckpt")
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, ema)
    note = "\n".join(checkpoint.notes)
    assert "ema (4 tensors)" in note
    assert "model (4 tensors)" in note
    assert "optimizer" in note
    assert "epoch" in note
    assert_same(open_checkpoint(path, weights="model"), raw)
    message = refusal(path, weights="teacher")
    assert "ema (4 tensors)" in message
    assert "model (4 tensors)" in message


def test_a_set_is_chosen_by_part_of_its_name(tmp_path: Path) -> None:
    raw, ema = make_tensors(1), make_tensors(2)
    path = save({"state_dict": {**prefixed("model.", raw), **prefixed("model_ema.", ema)}}, tmp_path / "a.ckpt")
    assert_same(open_checkpoint(path), ema)
    assert_same(open_checkpoint(path, weights="model"), raw)
    assert "names several" in refusal(path, weights="state_dict")


def test_the_counters_of_an_average_are_not_a_set_of_weights(tmp_path: Path) -> None:
    tree = {**make_tensors(), "ema.decay": torch.tensor(0.99), "ema.num_updates": torch.tensor(5)}
    assert_same(open_checkpoint(save(tree, tmp_path / "a.pt")), make_tensors())


def test_an_average_under_rewritten_names_is_left(tmp_path: Path) -> None:
    average = {name.replace(".", ""): tensor for name, tensor in make_tensors(1).items()}
    tree = {**make_tensors(), **prefixed("model_ema.", average)}
    checkpoint = open_checkpoint(save(tree, tmp_path / "a.pt"))
    assert_same(checkpoint, make_tensors())
    assert "model_ema (4 tensors)" in checkpoint.notes[0]


def test_a_container_that_holds_itself(tmp_path: Path) -> None:
    tree: dict[str, object] = {"state_dict": make_tensors()}
    tree["model"] = tree
    assert_same(open_checkpoint(save(tree, tmp_path / "a.pt"), weights="state_dict"), make_tensors())


@pytest.mark.parametrize("tree", [{}, {"epoch": 3}, {"model": {"step": 1}}, [torch.zeros(3)], torch.zeros(3), 5])
def test_nothing_to_take(tmp_path: Path, tree: object) -> None:
    assert "expected" in refusal(save(tree, tmp_path / "a.pt"))


def test_sparse_tensors_are_not_taken_for_weights(tmp_path: Path) -> None:
    with torch.sparse.check_sparse_tensor_invariants(True):
        sparse = torch.eye(3).to_sparse()
        checkpoint = open_checkpoint(save({**make_tensors(), "extra": sparse}, tmp_path / "a.pt"))
    assert_same(checkpoint, make_tensors())
    assert "extra" in checkpoint.notes[0]


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


# Checks


def problems(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        check(Checkpoint(tensors, (Path("a.ckpt"),)), expected, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    expected = {f"t{index}": (4, 3) for index in range(40)} | {"absent": (7,), "bent": (4, 3)}
    tensors = {f"t{index}": torch.zeros(4, 3) for index in range(40)} | {"bent": torch.zeros(3, 4)}
    tensors["t1"][3, 2] = float("nan")
    tensors["t2"][0, 0] = float("-inf")
    tensors["t3"] = torch.zeros(4, 3, dtype=torch.int8)
    for index in range(4, 20):
        del tensors[f"t{index}"]
    tensors["surplus"] = torch.zeros(2)
    message = problems(tensors, expected)
    assert "a.ckpt" in message
    assert "17 tensors missing" in message
    assert "t4, expected (4, 3)" in message
    assert "t15, expected (4, 3)" in message
    assert "t16, expected" not in message
    assert "and 5 more" in message
    assert "1 tensor unexpected:\n    surplus (2,)" in message
    assert "bent is (3, 4), expected (4, 3)" in message
    assert "t3 is int8" in message
    assert "t1 has 1 NaN and 0 infinite of 12 values" in message
    assert "t2 has 0 NaN and 1 infinite of 12 values" in message


@settings(max_examples=30)
@given(gone=st.sets(st.sampled_from(NAMES), min_size=1))
def test_every_missing_tensor_is_named(gone: set[str]) -> None:
    message = problems({name: tensor for name, tensor in make_tensors().items() if name not in gone}, EXPECTED)
    assert {name for name in NAMES if name in message} == gone


def test_a_fitting_checkpoint_passes() -> None:
    progress: list[int] = []
    check(Checkpoint(make_tensors(), (Path("a"),)), EXPECTED, progress=progress.append)
    assert progress[-1] == 4 * 4 * 60


def test_optional_tensors_may_be_missing_but_must_fit() -> None:
    expected = {**EXPECTED, "extra": (3,)}
    check(Checkpoint(make_tensors(), (Path("a"),)), expected, optional=("extra",))
    check(Checkpoint({**make_tensors(), "extra": torch.zeros(3)}, (Path("a"),)), expected, optional=("extra",))
    message = problems({**make_tensors(), "extra": torch.zeros(4)}, expected, optional=("extra",))
    assert "extra is (4,), expected (3,)" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_one_bad_value_in_millions_is_found(dtype: torch.dtype, bad: float, layout: str) -> None:
    tensor = torch.zeros(3, 700_001, dtype=dtype)
    tensor[2, -1] = bad
    if layout == "transposed":
        tensor = tensor[:, -1000:].T
    shape = tuple(tensor.shape)
    assert f"x has {int(bad != bad)} NaN and {int(bad == bad)} infinite" in problems({"x": tensor}, {"x": shape})
    check(Checkpoint({"x": torch.full_like(tensor, 1e4)}, (Path("a"),)), {"x": shape})


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    check(Checkpoint({"x": torch.zeros(shape)}, (Path("a"),)), {"x": shape})


def test_a_tensor_that_only_claims_to_be_large_is_not_read() -> None:
    message = problems({"x": torch.zeros(1).expand(10**15)}, {"x": (3,)})
    assert "x is (1000000000000000,), expected (3,)" in message


def test_constants_must_agree() -> None:
    constants = {NAMES[0]: torch.full(SHAPE, 3.0, dtype=torch.float64)}
    for value, fits in ((3.0, True), (3.005, True), (3.05, False), (-3.0, False)):
        tensors = {**make_tensors(), NAMES[0]: torch.full(SHAPE, value)}
        if fits:
            check(Checkpoint(tensors, (Path("a"),)), EXPECTED, constants=constants)
        else:
            assert NAMES[0] in problems(tensors, EXPECTED, constants=constants)
