"""Prompt embeddings on the disk, by content: what a text encoder made of a prompt once need not be made again.

A file's name is the digest of all that its content depends on: the encoder's graphs and weights, its precision, and
the prompt's tokens after cleaning. So a folder may serve any bundles, backends and processes at once; it only ever
grows, and any file of it may be deleted at any time. A file that is damaged is not used, and written anew.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError
from adacache_runtime.media.files import writing
from adacache_runtime.text.tokenizer import Tokens

LOG = logging.getLogger(__name__)

VERSION = 1  # of what is hashed, and of the files
STATES, DIGEST = "states", "sha256"  # arrays in a file


class EmbeddingCache:
    """A folder of embeddings, each of one prompt.

    Args:
        folder: folder of the files; it is made where it is missing.
        manifest: manifest of the bundle whose encoder makes them.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the embedding cache {folder} cannot be made: {error.strerror or error}") from error
        self._folder = folder
        self._encoder = encoder_digest(manifest)
        self._shape = (manifest.text.max_length, manifest.text.width)

    def path(self, tokens: Tokens) -> Path:
        """Return the path of the file for one prompt's tokens, (1, length) each."""
        content = [VERSION, self._encoder, tokens.ids.tolist(), tokens.mask.tolist()]
        return self._folder / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()}.safetensors"

    def get(self, tokens: Tokens) -> NDArray[np.float32] | None:
        """Return the states (length, width) of one prompt; None where there is no file, or a damaged one."""
        path = self.path(tokens)
        try:
            arrays = load(path.read_bytes())
            states = arrays[STATES]
            if states.shape != self._shape or states.dtype != np.float32:
                raise ValueError(f"{states.dtype} {states.shape}")
            if arrays[DIGEST].tobytes() != _digest(path, states):
                raise ValueError("other values than were written")
        except FileNotFoundError:
            return None
        except Exception as error:  # the library's errors have no common base
            LOG.warning("%s is damaged (%s) and is not used; its prompt is encoded again", path, error)
            return None
        return np.asarray(states, np.float32)

    def put(self, tokens: Tokens, states: NDArray[np.float32]) -> None:
        """Keep the states (length, width) of one prompt, whole or not at all.

        A run does not fail because of it: what cannot be written is logged.
        """
        path = self.path(tokens)
        states = np.ascontiguousarray(states)
        arrays: dict[str, np.ndarray] = {STATES: states, DIGEST: np.frombuffer(_digest(path, states), np.uint8)}
        try:
            with writing(path) as file:
                file.write(save(arrays))
        except InputError as error:
            LOG.warning("embeddings are not kept: %s", error)


def _digest(path: Path, states: NDArray[np.float32]) -> bytes:
    """Return a digest of the values and of the file in which they belong."""
    return hashlib.sha256(path.name.encode() + states.tobytes()).digest()


def encoder_digest(manifest: Manifest) -> str:
    """Return a digest of everything that decides what a bundle's text encoder makes of tokens."""
    graphs, weights = manifest.text.encoder_stages, manifest.weight_files()
    used = [manifest.files[path].sha256 for graph in graphs for path in (graph.path, weights[graph.name])]
    return hashlib.sha256(json.dumps([manifest.text.precision, used]).encode()).hexdigest()
