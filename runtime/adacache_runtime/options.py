"""Options that several commands share."""

import argparse

from adacache_engines.backends import BACKENDS, ONNXRUNTIME
from adacache_engines.ort import PROVIDERS
from adacache_runtime.command import size


def add_video(parser: argparse.ArgumentParser) -> None:
    """What a generation makes, and how it is sampled."""
    add = parser.add_argument_group("video and sampling").add_argument
    add("--size", type=size, metavar="HxW", help="pixels (default: the bundle's)")
    add("--frames", type=int, metavar="F", help="1 = an image (default: the bundle's)")
    add("--steps", type=int, help="(default: the bundle's)")
    add("--guidance", type=float, help="(default: the bundle's)")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """What runs the bundle."""
    add = parser.add_argument_group("engine").add_argument
    add("--backend", choices=BACKENDS, default=ONNXRUNTIME, help="(default: onnxruntime)")
    add("--provider", choices=tuple(PROVIDERS), default="cpu", help="of ONNX Runtime (default: cpu)")
    add("--threads", type=int, default=0, help="of ONNX Runtime (default: one a core)")
