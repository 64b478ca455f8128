"""Open a bundle, and read and write its manifest.

``manifest.json`` describes the model and lists every file with its sha256. It is written in one canonical form
and carries the digest of its own content, so that a changed byte anywhere is noticed before a file is used.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adacache_engines.bundle.hashed import HashedFiles
from adacache_engines.bundle.hashed import sha256_file as sha256_file
from adacache_engines.bundle.manifest import SCHEMA_VERSION, Manifest
from adacache_engines.bundle.plain_values import MOST_NBYTES, problem_in, read_json
from adacache_engines.errors import BundleError
from adacache_engines.printable import first_of, printable

MANIFEST = "manifest.json"
NO_HASH = f"is used but has no hash in {MANIFEST}"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, whose files were all found unchanged.

    Who reads a file of a bundle asks here for its path, so that a file that was changed after the bundle was opened is
    refused before it is used.

    Attributes:
        folder: folder of the bundle.
        manifest: description of the model and list of the files.
        hashed: files that were hashed, and are not read again as long as they stay as they are.
    """

    folder: Path
    manifest: Manifest
    hashed: HashedFiles = field(default_factory=HashedFiles, repr=False, compare=False)

    def path(self, name: str) -> Path:
        """Return the path of a file that the manifest names, which has its hash.

        Raises:
            BundleError: the file is missing or was changed.
        """
        self.check(name)
        return self.folder / name

    def check(self, *names: str) -> None:
        """Check that files have the hashes that the manifest states; what has not changed is not read again.

        Raises:
            BundleError: files are missing, were changed, or have no hash; the message names them.
        """
        problems = [problem for name in names if (problem := self.problem(name))]
        if problems:
            raise BundleError(f"bundle {self.folder}: {first_of(problems)}; copy or export it again, and open it anew")

    @contextmanager
    def reading(self, *names: str) -> Iterator[Path]:
        """Check files before and after they are read inside the context; yield the path of the first.

        Raises:
            BundleError: as of :meth:`check`; in place of an error inside the context that a changed file has caused.
        """
        self.check(*names)
        try:
            yield self.folder / names[0]
        finally:
            self.check(*names)

    def problem(self, name: str, progress: Callable[[int], None] = lambda _: None) -> str | None:
        """Return what is wrong with a file, None where nothing is; ``progress`` gets numbers of bytes that are read."""
        expected = self.manifest.hash_of(name)
        if expected is None:
            return f"{name} {NO_HASH}"
        return self.hashed.problem(self.folder, name, expected, progress)


def dump_manifest(manifest: Manifest) -> str:
    """Return the manifest's text, including its digest.

    Raises:
        BundleError: a text or a number in it is not possible in a manifest.
    """
    content = manifest.model_dump(mode="json")
    if problem := problem_in(content):
        raise BundleError(f"this manifest could not be read again: {problem}; change what it comes from")
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
        with path.open("rb") as file:
            data = file.read(MOST_NBYTES + 1)
        if len(data) > MOST_NBYTES:
            raise BundleError(
                f"{path} has more than {MOST_NBYTES >> 20} MB, which no manifest needs; copy or export the bundle again"
            )
        text = data.decode()
        content = read_json(text)
        _canonical(content).encode()  # escapes may stand for what no text holds
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}; make it readable, or copy it") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({printable(error)}); copy or export the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is damaged: expected an object; copy or export the bundle again")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {printable(repr(version), 40)}, this program reads {SCHEMA_VERSION}; "
            "export the checkpoint again with this version of adacache-export"
        )
    digest = content.pop("digest", None)
    if digest != _digest(content) or text != _canonical({**content, "digest": digest}):
        raise BundleError(f"{path} was changed after export; copy or export the bundle again")
    problem = problem_in(content)
    if problem is None:
        try:
            return Manifest.model_validate(content)
        except ValidationError as error:
            problem = _problems(error)
    raise BundleError(
        f"{path} does not follow schema version {SCHEMA_VERSION}: {problem}; copy or export the bundle again"
    )


def _problems(error: ValidationError) -> str:
    """Return the first few problems of a manifest, each with its field."""
    found = error.errors(include_url=False, include_input=False)
    parts = ([".".join(printable(part, 60) for part in one["loc"]), one["msg"]] for one in found)
    return first_of([": ".join(filter(None, part)).replace("Value error, ", "", 1) for part in parts])


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

    Where another process changes the bundle meanwhile, the result is the bundle before or after that, and no mixture.

    Raises:
        BundleError: the folder holds no bundle, or files are missing or changed; the message names them.
    """
    folder = Path(folder)
    while True:
        manifest = read_manifest(folder)
        bundle = Bundle(folder, manifest)
        problems = [problem for name in manifest.files if (problem := bundle.problem(name, progress))]
        problems += [f"{name} {NO_HASH}" for name in manifest.used_files() if name not in manifest.files]
        if not problems:
            return bundle
        if read_manifest(folder) == manifest:  # else it was replaced, and then what it alone had named was deleted
            raise BundleError(f"bundle {folder}: {first_of(problems)}; copy or export it again")
