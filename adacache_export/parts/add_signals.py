"""Signals of one's own that are added to a finished bundle, or replace those of the same name.

A signal has no weights, so it needs no checkpoint. Its graphs are written into a folder of their own and compared with
its reference in numpy; then the manifest changes, in one step; then what no manifest names any more is deleted.
Whatever stops this earlier leaves the bundle as it was. Two processes do this one after the other.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from adacache_engines.bundle.files import open_bundle, read_manifest, replace_manifest
from adacache_engines.bundle.locks import changing
from adacache_engines.bundle.manifest import FileEntry, Graph, Manifest, SignalEntry
from adacache_engines.bundle.signals import Space
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.parts.part import SMALL_FILES, place_folder
from adacache_export.phases import Progress
from adacache_export.signals import signal_entry, signal_stages
from adacache_export.stages import OF_TIMESTEP
from adacache_export.tracing.graphs import export_graphs
from adacache_export.verification.sizes import check_sizes
from adacache_export.writing.folder import file_entries, scratch, sweep
from adacache_runtime.caching.groups import hidden_spec
from adacache_runtime.caching.signals.registry import check_names
from adacache_runtime.caching.signals.signal import Signal

FOLDER = "signal"  # how the names of signals' folders begin


def add_signals(folder: Path, signals: Sequence[Signal], progress: Progress) -> tuple[Graph, ...]:
    """Add signals to the bundle in ``folder``, or replace those that it has of the same name.

    Args:
        folder: folder of the bundle.
        signals: the signals.
        progress: object that is told of every phase.

    Returns:
        The graphs of the signals, each with its check. Compiled plans of graphs that were replaced are not used any
        more, and there are none of the new ones yet.

    Raises:
        BundleError: a file of the bundle is missing or was changed, or the bundle cannot be written to.
        ExportError: a graph cannot be read or run, or disagrees with the signal's reference; or the disk is full.
        InputError: a name is one of the signals that every bundle has, or a number's name is taken.
    """
    with changing(folder, progress.note):
        return _add_signals(folder, signals, progress)


def _add_signals(folder: Path, signals: Sequence[Signal], progress: Progress) -> tuple[Graph, ...]:
    """Do the work of :func:`add_signals` while no other process changes the bundle."""
    size = sum(entry.nbytes for entry in read_manifest(folder).files.values())
    manifest = open_bundle(folder, progress.phase("checking the bundle", size)).manifest
    others = {name: entry for name, entry in manifest.signals.items() if name not in {s.name for s in signals}}
    numbers = {name: [spec.name for graph in e.graphs.values() for spec in graph.outputs] for name, e in others.items()}
    check_names(signals, numbers)
    _sweep(folder)
    try:
        written = [_write(folder, manifest, signal, progress) for signal in signals]
        before = read_manifest(folder)  # again: a file system may have no locks
        replace_manifest(folder, _changed(before, {s.name: made for s, made in zip(signals, written, strict=True)}))
    finally:
        _sweep(folder)
    return tuple(graph for entry, _ in written for graph in entry.graphs.values())


def _write(
    bundle: Path, manifest: Manifest, signal: Signal, progress: Progress
) -> tuple[SignalEntry, dict[str, FileEntry]]:
    """Write and verify a signal's graphs; return its entry in the manifest and its files."""
    known = manifest.probes()
    shown: dict[Space, TensorSpec] = {space: known[space].probe_spec(space) for space in OF_TIMESTEP if space in known}
    stages = signal_stages([signal], hidden_spec(manifest), manifest.latent, shown)
    with scratch(bundle, FOLDER, SMALL_FILES) as building:
        weights = building / "none"  # graphs are written beside their weights, and these have none
        sizes, backend = check_sizes(manifest.latent), OrtBackend(building.parent)
        graphs = export_graphs(stages, manifest.precision, weights, {}, _no_weights, sizes, backend, progress)
        entries = file_entries(building, progress.phase(f"hashing signal {signal.name}", 0))
        place = place_folder(bundle, FOLDER, building, entries)
    moved = {name: graph.model_copy(update={"path": f"{place}/{name}.onnx"}) for name, graph in graphs.items()}
    return signal_entry(signal, moved), {f"{place}/{file}": entry for file, entry in entries.items()}


def _no_weights(key: str) -> Tensor:
    raise AssertionError(f"a signal has no weight {key}")


def _changed(before: Manifest, made: dict[str, tuple[SignalEntry, dict[str, FileEntry]]]) -> Manifest:
    """Return a manifest with new signals, and without the files and plans of those that they replace."""
    signals = {**before.signals, **{name: entry for name, (entry, _) in made.items()}}
    old = [graph for name in made if name in before.signals for graph in before.signals[name].graphs.values()]
    gone = {graph.name for graph in old if graph.path not in {path for _, files in made.values() for path in files}}
    paths = {graph.path for graph in old}
    files = {path: entry for path, entry in before.files.items() if path not in paths}
    for _, new in made.values():
        files |= new
    plans = {
        name: some.model_copy(update={"plans": tuple(entry for entry in some.plans if entry.graph not in gone)})
        for name, some in before.plans.items()
    }
    return before.model_copy(update={"signals": signals, "files": dict(sorted(files.items())), "plans": plans})


def _sweep(folder: Path) -> None:
    """Delete the folders of signals that the manifest does not name: they were replaced, or never finished."""
    sweep(folder, FOLDER)
    used = {Path(path).parts[0] for path in read_manifest(folder).files}
    for place in folder.glob(f"{FOLDER}-*"):
        if place.is_dir() and place.name not in used:
            shutil.rmtree(place, ignore_errors=True)
