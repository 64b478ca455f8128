"""The manifest's entry on a signal: graphs that turn tensors into a few numbers for a policy."""

from typing import Literal

from adacache_engines.bundle.entries import Entry, Graph

Space = Literal["hidden", "latents", "time", "time_modulation"]
"""The kind of tensors that a signal's graph takes.

``hidden``: of the hidden state's shape (batch, patch_frames, tokens, width), in the model's precision. ``latents``: of
the latents' shape (samples, channels, frames, height, width), in float32. ``time``: embeddings of timesteps, (batch,
width), in float32. ``time_modulation``: modulations of blocks that are made of these, (batch, 6 width), in float32.
"""


class SignalEntry(Entry):
    """A signal for which a bundle has graphs.

    The names of a graph's inputs say what they take: ``cached`` is the tensor of an earlier call and ``new`` the tensor
    of this call; ``earlier`` and ``later`` (pairs,) are the indices of the frames that are compared. The outputs are
    the signal's numbers, one for each entry of the first axis. Along the graph's independent axes, the numbers of a
    tensor's parts add up to the numbers of the whole tensor.

    Attributes:
        graphs: the graph for each kind of tensors that the signal can be measured on.
    """

    graphs: dict[Space, Graph]
