"""The manifest's entries on stages: what each is to the model, what it computes, and what it shows.

A stage's name is a label for people. Whoever needs to know what a stage is reads its role, kind, index and part.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from adacache_engines.bundle.entries import Entry, Graph
from adacache_engines.bundle.tensors import TensorSpec

Role = Literal["text", "positions", "embed", "block", "final"]
ProbeRole = Literal["default", "block_input"]


class Term(Entry):
    """A part of a stage's work: so many ``flops`` for each element of the product of the axes' sizes."""

    axes: tuple[str, ...]  # one may come twice: every token attends to every token
    flops: int


class ProbeEntry(Entry):
    """A tensor that a stage also returns, for signals to look at.

    Attributes:
        output: name of the stage's output that carries it.
        role: what policies ask for instead of a site's name: ``default``, the residual that they measure where they
            name none; ``block_input``, the modulated input of the first block; None = asked for by its site only.
    """

    output: str
    role: ProbeRole | None = None


class StageEntry(Entry):
    """A stage of the model. A manifest lists them in the order of execution.

    Attributes:
        graph: the stage's graph. Its ``independent_axes`` say how the stage's work can be divided.
        role: ``text`` projects captions; ``positions`` makes what depends on sizes only; ``embed`` turns latents into
            the state; a ``block`` has the form hidden' = hidden + r(hidden, ...), so that a policy may reuse its
            residual; ``final`` turns the state into a prediction.
        per_generation: runs once a generation; else in each call.
        kind: kind of a block, such as ``spatial``; None for other roles.
        index: number of the block among those of its kind, from 0; None for other roles.
        part: residual part of the block, such as ``attn``, where the stage is one of several; None = the whole block.
        expert: number of the transformer that the stage belongs to, an index of ``Manifest.experts``.
        probes: site -> what is shown there.
        flops: floating-point operations of one call, the sum of these terms.
    """

    graph: Graph
    role: Role
    per_generation: bool = False
    kind: str | None = None
    index: int | None = Field(default=None, ge=0)
    part: str | None = None
    expert: int = Field(default=0, ge=0)
    probes: dict[str, ProbeEntry] = Field(default_factory=dict)
    flops: tuple[Term, ...] = ()

    @model_validator(mode="after")
    def _place(self) -> Self:
        if self.block != (self.kind is not None and self.index is not None) or (self.part and not self.block):
            raise ValueError(f"stage {self.graph.name}: a block has a kind and an index, another role has neither")
        if self.block and self.per_generation:
            raise ValueError(f"stage {self.graph.name}: a block runs in each call")
        return self

    @property
    def block(self) -> bool:
        """Whether the stage is a block, or a part of one."""
        return self.role == "block"

    @property
    def independent_axes(self) -> tuple[str, ...]:
        """Axes along which the stage's work is independent: see :class:`adacache_engines.bundle.entries.Graph`."""
        return self.graph.independent_axes

    def probe_spec(self, site: str) -> TensorSpec:
        """Name, dtype and axes of the output that carries a probe."""
        return next(spec for spec in self.graph.outputs if spec.name == self.probes[site].output)
