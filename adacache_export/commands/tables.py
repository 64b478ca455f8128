"""Tables and figures that several jobs of ``adacache-export`` print."""

from collections.abc import Iterable

from rich.table import Table

from adacache_engines.bundle.manifest import Graph, Manifest, PlanSet


def errors_table(graphs: Iterable[Graph]) -> Table:
    """Return a table of how far each engine is from its torch stage; a row a graph."""
    table = Table("stage", "error", "allowed", title="engines against torch: max |difference| / max(1, rms)")
    for graph in graphs:
        if graph.check:
            table.add_row(graph.name, f"{graph.check.error:.1e}", f"{graph.check.tolerance:.0e}")
    return table


def plans_table(sets: Iterable[PlanSet]) -> Table:
    """Return a table of compiled plans; a row for each library, version and set of profiles."""
    table = Table("plans", "compute capability", "profiles", "files", "MB", "built in", title="compiled engines")
    for plans in sets:
        files = {entry.path: entry for entry in plans.plans}
        table.add_row(
            f"{plans.library} {plans.version}",
            ", ".join(plans.targets),
            ", ".join(plans.profiles),
            f"{len(files)} for {len(plans.plans)} stages and variants",
            f"{sum(entry.nbytes for entry in files.values()) / 1e6:.1f}",
            f"{sum(entry.build_s for entry in files.values()):.1f} s",
        )
    return table


def gigabytes(manifest: Manifest) -> str:
    """Return the size of a bundle's files for people."""
    return f"{sum(entry.nbytes for entry in manifest.files.values()) / 1e9:.3f} GB"
