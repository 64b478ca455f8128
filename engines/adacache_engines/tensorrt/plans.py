"""Choose the set of a bundle's compiled plans that runs here, and check that its files are unchanged.

A plan is executable code to the library that opens it, so nothing of a set is opened before all of it is checked.
"""

from collections.abc import Callable

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Library, PlanEntry, PlanSet, Variant
from adacache_engines.bundle.plan_entries import ENGINES as ENGINES
from adacache_engines.errors import BundleError, EngineError
from adacache_engines.tensorrt.library import CURRENT, TARGETS


def choose(bundle: Bundle, library: Library, version: str, target: str | None) -> tuple[str, PlanSet]:
    """Return the name and the set of plans that a library can run.

    Args:
        bundle: the opened bundle.
        library, version: the installed library and its version.
        target: compute capability of the GPU, such as ``8.9``; None = any.

    Raises:
        EngineError: there is none; the message says for each set why it does not run.
    """
    reasons = []
    for name, plans in bundle.manifest.plans.items():
        reason = _unfit(bundle, plans, library, version, target)
        if reason is None:
            return name, plans
        reasons.append(f"{name}: {reason}")
    raise EngineError(
        f"bundle {bundle.folder} has no plans that {library} {version} can run here ("
        + ("; ".join(reasons) or "it has none at all")
        + f"); {remedy(bundle, library, version, target)}"
    )


def remedy(bundle: Bundle, library: Library, version: str, target: str | None) -> str:
    """Return what a user does who needs plans for a compute capability; None = that of no certain GPU."""
    command = f"adacache-export {bundle.folder} --backend {library}"
    if library != "tensorrt-rtx" or target is None:
        return f"build them with: {command}"
    if target in TARGETS:
        return f"build them with: {command} --target {target}"
    known = ", ".join(name for name in TARGETS if name != CURRENT)
    return (
        f"{library} {version} builds for {known} and not for {target}: run with --backend tensorrt, or with "
        f"--backend onnxruntime --provider cuda, which needs no plans"
    )


def _unfit(bundle: Bundle, plans: PlanSet, library: Library, version: str, target: str | None) -> str | None:
    """Return the reason why a set does not run here; None = it runs."""
    if plans.library != library:
        return f"built by {plans.library}"
    if plans.version != version:
        return f"built by version {plans.version}"
    if target is not None and target not in plans.targets:
        return f"built for compute capability {', '.join(plans.targets)}, this GPU has {target}"
    paths = {graph.name: graph.path for graph in bundle.manifest.graphs()}
    hashes = {name: bundle.manifest.files[path].sha256 for name, path in paths.items()}
    stale = [entry.stage for entry in plans.plans if hashes.get(entry.graph) != entry.graph_sha256]
    return f"built from other graphs ({', '.join(stale)})" if stale else None


def find(plans: PlanSet, stage: str, variant: Variant = "full") -> PlanEntry:
    """Return the plan of a stage.

    Raises:
        EngineError: the set has none.
    """
    for entry in plans.plans:
        if (entry.stage, entry.variant) == (stage, variant):
            return entry
    raise EngineError(
        f"the {plans.library} {plans.version} plans of this bundle have none for {stage} ({variant}); build what is "
        f"missing with: adacache-export BUNDLE --backend {plans.library}, and the profiles {', '.join(plans.profiles)}"
    )


def resident_share(bundle: Bundle, plans: PlanSet, weight_budget: int | None) -> float:
    """Return the share of each plan's weights that stays on the GPU, 0 to 1.

    Args:
        bundle: the opened bundle.
        plans: the set of plans that will run.
        weight_budget: bytes of GPU memory for all weights; None = as many as they need.

    Raises:
        EngineError: the budget is smaller than the plans, and they were not built for weights in host memory.
    """
    files = {entry.path: entry.nbytes for entry in plans.plans}
    share = 1.0 if weight_budget is None else min(1.0, weight_budget / sum(files.values()))
    if share < 1 and not plans.options.get("weight_streaming"):
        raise EngineError(
            f"the {plans.library} plans of {bundle.folder} keep all weights on the GPU; build plans that need not "
            f"with: adacache-export {bundle.folder} --backend {plans.library} --weight-streaming --force"
        )
    return share


def check_plans(bundle: Bundle, plans: PlanSet, progress: Callable[[int], None] = lambda _: None) -> None:
    """Hash every file of a set again; ``progress`` gets numbers of bytes.

    Raises:
        BundleError: a file is missing or was changed; all of them are named.
    """
    paths = dict.fromkeys(entry.path for entry in plans.plans)
    problems = [problem for path in paths if (problem := bundle.problem(path, progress))]
    if problems:
        raise BundleError(
            f"bundle {bundle.folder}: {'; '.join(problems)}; build the plans again with: "
            f"adacache-export {bundle.folder} --backend {plans.library} --force"
        )
