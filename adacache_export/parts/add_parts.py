"""A text encoder, an image encoder or a VAE that is added to a finished bundle, or replaces the one in it.

The part is written into a folder of its own; then the manifest changes, in one step; then what no manifest names any
more is deleted. Whatever stops this earlier leaves the bundle as it was. Two processes do this one after the other.
"""

import contextlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from adacache_engines.bundle.files import open_bundle, read_manifest, replace_manifest
from adacache_engines.bundle.locks import changing
from adacache_engines.bundle.manifest import Graph, Manifest, PartName, PlanSet
from adacache_export.options import PartOptions
from adacache_export.parts.opened import Rules, open_parts
from adacache_export.parts.part import DIGITS, Part
from adacache_export.phases import Progress
from adacache_export.writing.folder import sweep


@dataclass(frozen=True)
class Added:
    """Result of adding parts to a bundle.

    Attributes:
        graphs: graphs of the new parts, each with its check.
        dropped: number of compiled plans that were deleted because their graphs were replaced.
    """

    graphs: tuple[Graph, ...]
    dropped: int


def add_parts(folder: Path, options: PartOptions, progress: Progress) -> Added:
    """Add parts to the bundle in ``folder``, or replace those that it has.

    Args:
        folder: folder of the bundle.
        options: the parts, at least one of them, and their precisions.
        progress: object that is told of every phase.

    Raises:
        BundleError: a file of the bundle is missing or was changed, or the bundle cannot be written to.
        CheckpointError: a part cannot be read, is of no known kind, or is damaged.
        ExportError: a stage cannot be traced, an engine disagrees with its stage, or the disk is full.
        InputError: a part does not fit the model.
    """
    with changing(folder, progress.note):
        return _add_parts(folder, options, progress)


def _add_parts(folder: Path, options: PartOptions, progress: Progress) -> Added:
    """Do the work of :func:`add_parts` while no other process changes the bundle."""
    size = sum(entry.nbytes for entry in read_manifest(folder).files.values())
    manifest = open_bundle(folder, progress.phase("checking the bundle", size)).manifest
    folders: dict[PartName, Path | None] = {name: getattr(options, name) for name in get_args(PartName)}
    rules = Rules(manifest.latent, manifest.text, manifest.image)
    opened = open_parts(folders, rules, options, progress)
    _sweep(folder)
    try:
        parts, rules = opened.write(folder, progress)
        before = read_manifest(folder)  # again: a file system may have no locks
        after = _changed(before, before.model_copy(update=rules.entries()), parts)
        replace_manifest(folder, after)
        _delete(folder, {*before.files} - {*after.files})
        _delete(folder, _plan_files(before) - _plan_files(after))
    finally:
        _sweep(folder)
    dropped = sum(len(plans.plans) for plans in before.plans.values()) - sum(
        len(plans.plans) for plans in after.plans.values()
    )
    return Added(tuple(graph for part in parts.values() for graph in part.graphs.values()), dropped)


def _changed(before: Manifest, after: Manifest, parts: Mapping[PartName, Part]) -> Manifest:
    """Return ``after`` with the files of its new parts, and without the files and plans of those that they replace."""
    replaced = [
        name for name, weights in before.part_weights.items() if name in parts and parts[name].weights != weights
    ]
    gone = {graph.name for name in replaced for graph in before.part_graphs(name)}
    folders = tuple(f"{Path(before.part_weights[name]).parent}/" for name in replaced)
    weights = {**before.part_weights, **{name: part.weights for name, part in parts.items()}}
    files = {path: entry for path, entry in before.files.items() if not path.startswith(folders)}
    for part in parts.values():
        files |= part.files
    changes = {
        "part_weights": dict(sorted(weights.items())),
        "files": dict(sorted(files.items())),
        "plans": {name: _without(plans, gone) for name, plans in before.plans.items()},
    }
    return after.model_copy(update=changes)


def _without(plans: PlanSet, graphs: Collection[str]) -> PlanSet:
    """Return a set of plans without those of the given graphs, whose weights the plans hold a copy of."""
    return plans.model_copy(update={"plans": tuple(entry for entry in plans.plans if entry.graph not in graphs)})


def _plan_files(manifest: Manifest) -> set[str]:
    return {entry.path for plans in manifest.plans.values() for entry in plans.plans}


def _delete(folder: Path, paths: Collection[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # no manifest names them any more
            (folder / path).unlink()


def _sweep(folder: Path) -> None:
    """Delete the folders of parts that the manifest does not name: they were replaced, or never finished."""
    manifest = read_manifest(folder)
    used = {Path(path).parts[0] for path in manifest.files}
    for name in get_args(PartName):
        sweep(folder, name)
        for place in folder.glob(f"{name}-{'[0-9a-f]' * DIGITS}"):
            if place.name not in used:
                shutil.rmtree(place, ignore_errors=True)
