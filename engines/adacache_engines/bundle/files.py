"""Open a bundle, and read and write its manifest.

``manifest.json`` describes the model and lists every file with its sha256. It is written in one canonical form
and carries the digest of its own content, so that a changed byte anywhere is noticed before a file is used.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from adacache_engines.bundle.manifest import SCHEMA_VERSION, Manifest
from adacache_engines.errors import BundleError

MANIFEST = "manifest.json"
HASHED_NBYTES = 1 << 22  # size of the pieces that are read and hashed


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, whose files were all found unchanged.

    Attributes:
        folder: folder of the bundle.
        manifest: description of the model and list of the files.
    """

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return the path of a file that the manifest names."""
        return self.folder / name


def sha256_file(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; ``progress`` gets the size in bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while content := file.read(HASHED_NBYTES):
            digest.update(content)
            progress(len(content))
    return digest.hexdigest()


def dump_manifest(manifest: Manifest) -> str:
    """Return the manifest's text, including its digest."""
    content = manifest.model_dump(mode="json")
    return _canonical({**content, "digest": _digest(content)})


def _canonical(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle, without looking at the other files.

    Raises:
        BundleError: the folder holds no bundle, or its manifest was changed or has another schema version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with adacache-export")
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        _canonical(content).encode()  # escapes may stand for what no text holds
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({error}); copy or export the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is damaged: expected an object; copy or export the bundle again")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version!r}, this program reads {SCHEMA_VERSION}; "
            "export the checkpoint again with this version of adacache-export"
        )
    digest = content.pop("digest", None)
    if digest != _digest(content) or text != _canonical({**content, "digest": digest}):
        raise BundleError(f"{path} was changed after export; copy or export the bundle again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BundleError(f"{path} does not follow schema version {SCHEMA_VERSION}: {problems}") from error


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace a bundle's manifest in one step.

    The caller holds the bundle's lock (:func:`adacache_engines.bundle.locks.changing`) since it read the old manifest.

    Raises:
        BundleError: the folder cannot be written, or the disk is full; the old manifest stays.
    """
    partial = folder / f".{MANIFEST}.writing"
    try:
        partial.write_text(dump_manifest(manifest), encoding="utf-8")
        partial.replace(folder / MANIFEST)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BundleError(f"{folder / MANIFEST} cannot be written: {error.strerror or error}") from error


def open_bundle(folder: Path | str, progress: Callable[[int], None] = lambda _: None) -> Bundle:
    """Open a bundle: read its manifest, and hash every file again; ``progress`` gets numbers of hashed bytes.

    Raises:
        BundleError: the folder holds no bundle, or files are missing or changed; the message names all of them.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems = []
    for name, entry in manifest.files.items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            problems.append(f"{name} lies outside the bundle")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry.nbytes:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry.nbytes}")
        elif sha256_file(path, progress) != entry.sha256:
            problems.append(f"{name} was changed after export")
    used = [manifest.weights, *(graph.path for graph in manifest.graphs())]
    used += sorted({*manifest.weight_files().values()} - {manifest.weights})
    if manifest.text.tokenizer:
        used.append(manifest.text.tokenizer)
    problems += [f"{name} is used but has no hash in {MANIFEST}" for name in used if name not in manifest.files]
    if problems:
        raise BundleError(f"bundle {folder}: {'; '.join(problems)}; copy or export it again")
    return Bundle(folder, manifest)
