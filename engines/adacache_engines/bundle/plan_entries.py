"""The manifest's entries on compiled plans."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from adacache_engines.bundle.entries import Entry
from adacache_engines.bundle.names import BundlePath, Name, Nbytes, Sha256, UsualSpan
from adacache_engines.bundle.tensors import Precision

ENGINES = "engines"  # folder in a bundle, with a folder for each set of plans

Library = Literal["tensorrt-rtx", "tensorrt"]
Variant = Literal["full", "reuse"]


def _of_plans(path: str) -> str:
    if not path.startswith(f"{ENGINES}/"):
        raise ValueError(f"{path} is not one of {ENGINES}/, where plans are")
    return path


class PlanEntry(Entry):
    """A compiled plan of TensorRT.

    Attributes:
        stage: name of the graph that the plan runs.
        variant: ``full``, or ``reuse`` of a block: hidden' = hidden + residual, a plan that all blocks share.
        graph: name of the graph that the plan was built from: the stage's own, or ``add``.
        path: path of the file in the bundle; plans of equal content share a file.
        nbytes, sha256: size and hash of that file, which ``Manifest.files`` does not list.
        graph_sha256: hash of the graph's file.
        build_s: seconds that building took; 0 where the content was there already.
    """

    stage: Name
    variant: Variant
    graph: Name
    path: Annotated[BundlePath, AfterValidator(_of_plans)]
    nbytes: Nbytes
    sha256: Sha256
    graph_sha256: Sha256
    build_s: Annotated[float, Field(ge=0)]


class PlanSet(Entry):
    """Plans for all stages of a bundle, built together.

    Attributes:
        library, version: the library that built the plans; no other version may open them.
        targets: compute capabilities, such as ``8.9``, that the plans run on.
        precision: precision of the graphs.
        profiles: name -> dynamic axis -> smallest, usual and largest size, in the order of the optimisation profiles
            in the plans.
        options: options of the build, as the user gave them.
        plans: the plans: one for each graph, and one for the reuse variant of each block.
    """

    library: Library
    version: Name
    targets: tuple[Name, ...]
    precision: Precision
    profiles: dict[Name, dict[Name, UsualSpan]]
    options: dict[Name, str | int | float | bool] = Field(default_factory=dict)
    plans: tuple[PlanEntry, ...]
