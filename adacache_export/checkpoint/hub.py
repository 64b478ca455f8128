"""Repositories of Hugging Face whose files are already in the local cache; nothing is downloaded."""

import re
from collections.abc import Collection
from pathlib import Path

from adacache_engines.errors import CheckpointError, InputError, require
from adacache_export.checkpoint.pipeline_folder import Source, open_source

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
CACHED, SEPARATOR = "models--", "--"  # how the name of a repository's folder in the cache begins, and is divided
SNAPSHOTS = "snapshots"


def repository_of(source: Path) -> str | None:
    """Return the repository, OWNER/NAME, that a path stands for: its id, or its folder in the cache; None = neither."""
    if source.is_dir():
        owner, separator, name = source.resolve().name.removeprefix(CACHED).partition(SEPARATOR)
        cached = source.resolve().name.startswith(CACHED) and separator and (source / SNAPSHOTS).is_dir()
        return f"{owner}/{name}" if cached else None
    text = source.as_posix()
    return text if not source.exists() and not source.is_absolute() and REPOSITORY.fullmatch(text) else None


def download_command(repository: str, revision: str | None) -> str:
    """Return the command that downloads a repository into the cache."""
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")


def resolved(source: Path, revision: str | None = None) -> Path:
    """Return the folder of files that a path stands for: the path itself, or a repository's snapshot in the cache.

    Args:
        source: a path, the id of a repository, or a repository's folder in the cache.
        revision: branch, tag or commit of the repository; None = its main branch.

    Raises:
        InputError: the cache does not have it; names the command that downloads it. Or a revision is given for a path.
    """
    repository = repository_of(source)
    if repository is None:
        if revision is not None:
            raise InputError(
                f"--revision {revision} is that of a Hugging Face repository, and {source} is none; leave it out"
            )
        return source
    require("huggingface_hub", "export")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    cache = source.resolve().parent if source.is_dir() else None
    try:
        return Path(snapshot_download(repository, revision=revision, cache_dir=cache, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        where = f"{repository} at {revision}" if revision else repository
        hint = "" if source.is_dir() else "check the path, if it is one; "
        raise InputError(
            f"{where} is not in the local cache of Hugging Face, and nothing is downloaded here; {hint}else run:"
            f" {download_command(repository, revision)}"
        ) from error


def open_published(
    source: Path, revision: str | None = None, weights: str | None = None, replaced: Collection[str] = ()
) -> Source:
    """Open a path or a repository in the local cache, see :func:`resolved` and :func:`open_source`.

    Raises:
        CheckpointError, InputError: as these; for a repository the message names the command that downloads all of it.
    """
    folder, repository = resolved(source, revision), repository_of(source)
    try:
        return open_source(folder, weights, replaced)
    except CheckpointError as error:
        if repository is None:
            raise
        message = f"{str(error).rstrip('.')}; all files come with: {download_command(repository, revision)}"
        raise CheckpointError(message) from error
