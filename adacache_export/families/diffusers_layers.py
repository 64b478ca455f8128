"""Modules under the names that their parameters have in diffusers, for families whose checkpoints have that layout."""

from torch import Tensor, nn
from torch.nn import functional as F

from adacache_engines.bundle.manifest import Term
from adacache_export.costs import TEXT, layers, total
from adacache_export.families.layers import linear, sinusoid, sinusoid_frequencies


class TextProjection(nn.Module):
    """The ``text`` stage: encoder states (B, L, width_in) -> (B, L, D), by Linear, the tanh form of GELU, Linear."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, captions: Tensor) -> Tensor:
        hidden = F.gelu(linear(self.linear_1, captions.to(self.linear_1.weight.dtype)), approximate="tanh")
        return linear(self.linear_2, hidden)

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self, TEXT))


class TimestepEmbedding(nn.Module):
    """Embedding of timesteps (B,) as (B, D): a sinusoid of ``sinusoid_width`` numbers, then Linear, SiLU, Linear."""

    def __init__(self, sinusoid_width: int, width: int) -> None:
        super().__init__()
        self.frequencies = sinusoid_frequencies(sinusoid_width // 2)
        self.linear_1 = nn.Linear(sinusoid_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        hidden = self.linear_1(sinusoid(timestep, self.frequencies).to(self.linear_1.weight.dtype))
        out: Tensor = self.linear_2(F.silu(hidden))
        return out


class FeedForward(nn.Module):
    """The MLP of a block: Linear from ``width`` to ``hidden``, the tanh form of GELU, and Linear back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict(
            {"0": nn.ModuleDict({"proj": nn.Linear(width, hidden)}), "2": nn.Linear(hidden, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(linear(self.net["0"]["proj"], x), approximate="tanh")  # type: ignore[index]
        return linear(self.net["2"], hidden)  # type: ignore[arg-type]
