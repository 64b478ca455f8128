"""Bundles with plans of TensorRT-RTX, which it builds without a GPU: their profiles, and whether all are there."""

from pathlib import Path

from adacache_engines.bundle.files import open_bundle, read_manifest, sha256_file
from adacache_engines.bundle.manifest import PlanSet
from adacache_engines.bundle.shape_profiles import ShapeProfile, fixed_profile, shape_profile
from adacache_engines.tensorrt.library import InstalledLibrary
from adacache_engines.tensorrt.plans import check_plans, choose

ARITHMETIC = {
    "add",
    "subtract",
    "hidden_change",
    "latents_change",
    "hidden_motion",
    "latents_new_magnitude",
    "guide",
    "combine",
}


def profiles(folder: Path, *names: str) -> dict[str, ShapeProfile]:
    manifest = read_manifest(folder)
    return {name: shape_profile(manifest, name) for name in names or [fixed_profile(manifest)]}


def only(folder: Path) -> PlanSet:
    (plans,) = read_manifest(folder).plans.values()
    return plans


def assert_complete(folder: Path, rtx: InstalledLibrary) -> None:
    bundle = open_bundle(folder)
    manifest, plans = bundle.manifest, only(folder)
    blocks = {stage.graph.name for stage in manifest.stages if stage.block}
    names = {graph.name for graph in manifest.graphs()}
    assert names >= blocks | ARITHMETIC | {"text", "embed", "final"}
    found = {(entry.stage, entry.variant): entry for entry in plans.plans}
    assert set(found) == {(name, "full") for name in names} | {(block, "reuse") for block in blocks}
    assert len(found) == len(plans.plans)
    assert (plans.library, plans.version, plans.precision) == ("tensorrt-rtx", rtx.version, manifest.precision)
    assert plans.targets == ("8.0", "8.6", "8.9", "12.0", "12.1")
    for (_, variant), entry in found.items():
        if variant == "reuse":
            assert (entry.graph, entry.path) == ("add", found["add", "full"].path)
        path = folder / entry.path
        assert (path.stat().st_size, sha256_file(path)) == (entry.nbytes, entry.sha256)
        graph = next(graph for graph in manifest.graphs() if graph.name == entry.graph)
        assert entry.graph_sha256 == manifest.files[graph.path].sha256
        assert entry.build_s > 0
    stored = {path for path in (folder / "engines").rglob("*") if path.is_file()}
    assert stored == {folder / entry.path for entry in plans.plans}, "only plans, each content once"
    assert choose(bundle, "tensorrt-rtx", rtx.version, "8.9")[1] == plans
    check_plans(bundle, plans)
