"""Checkpoints of any supported layout, opened without running code from them and checked before they are used."""

from adacache_export.checkpoint.checks import check
from adacache_export.checkpoint.opened import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "check", "open_checkpoint"]
