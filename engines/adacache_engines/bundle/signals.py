"""The manifest's entry for a signal: the graphs that turn tensors into a few numbers for a policy."""

from typing import Literal

from adacache_engines.bundle.entries import Entry, Graph

Space = Literal["hidden", "latents"]
"""Which tensors a signal's graph takes: those of the hidden state's shape (batch, patch_frames, tokens, width), in the
model's precision, or those of the latents' shape (samples, channels, frames, height, width), in float32."""


class SignalEntry(Entry):
    """A signal for which a bundle has graphs.

    A graph's inputs say how it is bound: ``cached`` is the tensor of an earlier call and ``new`` that of this call;
    ``earlier`` and ``later`` (pairs,) are the indices of the frames that are compared. Its outputs are the signal's
    numbers, one for each entry of the first axis. Along its independent axes, the numbers of a tensor's parts add up to
    those of the whole tensor.

    Attributes:
        graphs: graph for each space that the signal is made for.
    """

    graphs: dict[Space, Graph]
