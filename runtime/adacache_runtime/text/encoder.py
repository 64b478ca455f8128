"""The text encoder's run: tokens to states."""

from collections.abc import Sequence

import numpy as np

from adacache_engines.bundle.manifest import TextRule
from adacache_engines.contract.engine import Backend
from adacache_runtime.chain import States, run_chain
from adacache_runtime.text.embedding_cache import EmbeddingCache
from adacache_runtime.text.tokenizer import Tokens


def encode(
    rule: TextRule, backend: Backend, texts: Sequence[Tokens], cache: EmbeddingCache | None = None
) -> list[States]:
    """Return the states (prompts, length, width) of each of ``texts``.

    Every prompt is encoded by itself, and once, so its states do not depend on what is beside it. Nothing is loaded
    where the cache has all prompts.
    """
    rows = {_key(row): row for tokens in texts for row in _rows(tokens)}
    states = {key: found for key, row in rows.items() if cache and (found := cache.get(row)) is not None}
    missing = {key: row for key, row in rows.items() if key not in states}
    if missing:
        states |= dict(zip(missing, _run(rule, backend, list(missing.values())), strict=True))
        for key, row in missing.items():
            if cache and np.isfinite(states[key]).all():
                cache.put(row, states[key])
    return [np.stack([states[_key(row)] for row in _rows(tokens)]) for tokens in texts]


def cached(texts: Sequence[Tokens], cache: EmbeddingCache | None) -> bool:
    """Return whether the encoder need not run."""
    return all(cache is not None and cache.path(row).is_file() for tokens in texts for row in _rows(tokens))


def _rows(tokens: Tokens) -> list[Tokens]:
    """Split tokens into prompts, (1, length) each."""
    return [Tokens(tokens.ids[i : i + 1], tokens.mask[i : i + 1]) for i in range(len(tokens.ids))]


def _key(row: Tokens) -> tuple[bytes, bytes]:
    return row.ids.tobytes(), row.mask.tobytes()


def _run(rule: TextRule, backend: Backend, rows: Sequence[Tokens]) -> list[States]:
    """Run the encoder; return the states (length, width) of each row."""
    given = [{"tokens": row.ids, "mask": row.mask} for row in rows]
    made = run_chain(rule.encoder_stages, backend, {"batch": 1, "text": rule.max_length}, given)
    return [states[0] for states in made]
