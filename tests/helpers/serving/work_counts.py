"""Counts of the work of a generation, in the server's process and in a worker's.

Every function is counted wherever a module has imported it, so that no caller goes uncounted.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adacache_engines.contract.device import HostDevice
from adacache_runtime import settled
from adacache_runtime.denoising import assembly
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.text import prompts
from adacache_serve.settings import Settings
from tests.helpers.serving import fake_server

SETTLED, TOKENISED, NOISE, COUNTED, ALLOCATED = "settled", "tokenised", "noise", "counted", "allocated"


def counted(note: Callable[[str], None]) -> Callable[[], None]:
    """Call ``note`` with a word for each piece of work of this process; return a function that ends that."""

    def assembled(*arguments: Any, **named: Any) -> str:
        device = named.get("device", arguments[2] if len(arguments) > 2 else None)
        return ALLOCATED if isinstance(device, HostDevice) else COUNTED

    words: dict[Callable[..., Any], Callable[..., str]] = {
        settled.settle: lambda *_, **__: SETTLED,
        settled.initial_noise: lambda *_, **__: NOISE,
        prompts.read_text: lambda *_, **__: TOKENISED,
        assembly.assemble: assembled,
    }
    undo: list[tuple[Any, str, Any]] = []
    for original, word in words.items():

        def wrapped(*arguments: Any, _original: Any = original, _word: Any = word, **named: Any) -> Any:
            note(_word(*arguments, **named))
            return _original(*arguments, **named)

        for module in [module for name, module in sys.modules.items() if name.startswith("adacache_")]:
            for name, value in list(vars(module).items()):
                if value is original:
                    undo.append((module, name, value))
                    setattr(module, name, wrapped)

    def restore() -> None:
        for module, name, value in undo:
            setattr(module, name, value)

    return restore


def open_counting_models(log: Path, folders: tuple[Path, ...], settings: Settings) -> dict[str, Pipeline]:
    """Open the fake models in a worker process, which from now on appends its work to a file."""

    def note(word: str) -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{word}\n".encode())
        os.close(descriptor)

    counted(note)
    return fake_server.open_models(folders, settings)


def read_counts(log: Path) -> Counter[str]:
    """Return the work that workers have noted so far."""
    return Counter(log.read_text().splitlines())
