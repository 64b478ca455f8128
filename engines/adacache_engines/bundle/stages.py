"""The manifest's entries on stages: the role, the operations and the probes of each.

A stage's name is a label for people. Programs read its role, kind, index and part instead.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from adacache_engines.bundle.entries import Entry, Graph
from adacache_engines.bundle.names import Name
from adacache_engines.bundle.tensors import MOST_AXES, TensorSpec

MOST_BLOCKS = 10_000

Role = Literal["text", "image", "positions", "embed", "block", "final"]
ProbeRole = Literal["default", "block_input", "time", "time_modulation"]


class Term(Entry):
    """A term of a stage's work: ``flops`` operations, times the product of the sizes of ``axes``."""

    axes: tuple[Name, ...] = Field(max_length=MOST_AXES)  # an axis may come twice: every token attends to every token
    flops: int = Field(ge=0)


class ProbeEntry(Entry):
    """A tensor that a stage also returns, for signals to look at.

    Attributes:
        output: name of the stage's output that carries it.
        role: role by which policies find the probe without its site: ``default`` is the residual that they measure
            where they name no site; ``block_input`` is the modulated input of the first block; ``time`` is the
            embedding of the timestep, and ``time_modulation`` the modulation of all blocks that is made of it, whose
            sites are called the same; None = it has no role.
    """

    output: Name
    role: ProbeRole | None = None


class StageEntry(Entry):
    """A stage of the model; a manifest lists stages in the order of execution.

    Attributes:
        graph: the stage's graph. Its ``independent_axes`` say how the stage's work can be divided.
        role: ``text`` projects captions, or makes of them what a block takes; ``image`` does the same with states of an
            image; ``positions`` makes tensors that depend on sizes only; ``embed`` turns latents into the hidden state;
            a ``block`` has the form hidden' = hidden + r(hidden, ...), so that a policy may reuse its residual;
            ``final`` turns the hidden state into a prediction.
        per_generation: whether the stage runs once in a generation; else it runs in each call.
        kind: kind of a block, such as ``spatial``. Another stage has it, and an index, where it prepares that block: it
            runs once in a generation, and what it makes goes to the stages of that block alone. None = it makes what
            any stage may take.
        index: number of the block among those of its kind, from 0; None where there is no kind.
        part: residual part of the block that the stage computes, such as ``attn``; None = the whole block.
        expert: number of the transformer that the stage belongs to, an index of ``Manifest.experts``.
        probes: site -> the probe there.
        flops: floating-point operations of one call, the sum of these terms.
    """

    graph: Graph
    role: Role
    per_generation: bool = False
    kind: Name | None = None
    index: int | None = Field(default=None, ge=0, le=MOST_BLOCKS)
    part: Name | None = None
    expert: int = Field(default=0, ge=0)
    probes: dict[Name, ProbeEntry] = Field(default_factory=dict)
    flops: tuple[Term, ...] = ()

    @model_validator(mode="after")
    def _place(self) -> Self:
        if (self.kind is None) != (self.index is None) or (self.block and self.kind is None):
            raise ValueError(f"stage {self.graph.name}: a block has a kind and an index; expected both, or neither")
        if self.part and not self.block:
            raise ValueError(f"stage {self.graph.name}: only a block has parts, and its role is {self.role}")
        if self.block and self.per_generation:
            raise ValueError(f"stage {self.graph.name}: a block runs in each call")
        if self.prepares_block and not self.per_generation:
            raise ValueError(f"stage {self.graph.name}: what prepares a block runs once in a generation")
        return self

    @property
    def block(self) -> bool:
        """Whether the stage is a block, or a part of one."""
        return self.role == "block"

    @property
    def prepares_block(self) -> bool:
        """Whether what the stage makes goes to the stages of one block alone."""
        return self.kind is not None and not self.block

    def own_name(self, tensor: str) -> str:
        """Return the name, unique in the model, of a tensor that goes from stage to stage of one block alone."""
        return f"{self.kind}.{self.index}.{tensor}"

    @property
    def independent_axes(self) -> tuple[str, ...]:
        """Axes along which the stage's work is independent: see :class:`adacache_engines.bundle.entries.Graph`."""
        return self.graph.independent_axes

    def probe_spec(self, site: str) -> TensorSpec:
        """Return name, dtype and axes of the output that carries a probe."""
        return next(spec for spec in self.graph.outputs if spec.name == self.probes[site].output)
