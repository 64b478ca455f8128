"""The memory that a run takes, as a table on a terminal."""

from rich.table import Table

from adacache_runtime.memory.estimate import KINDS, MemoryEstimate, megabytes

GROWS = "grows as needed"


def memory_table(estimate: MemoryEstimate, free: int | None, place: str) -> Table:
    """Return a table with one row for each kind of memory.

    Args:
        estimate: estimate of what the run takes.
        free: number of bytes that are free now, with the weights loaded; None = unknown.
        place: name of the backend.
    """
    shown = Table("memory", "MB", title=place, title_justify="left")
    shown.columns[1].justify = "right"
    for name, text in KINDS.items():
        nbytes = getattr(estimate, name)
        shown.add_row(text, GROWS if nbytes is None else megabytes(nbytes))
    for text, weights in (
        ("weights with --expert-offload", estimate.weights_with_offload),
        ("weights without --expert-offload", estimate.weights_without_offload),
    ):
        if weights is not None:
            shown.add_row(text, megabytes(weights))
    shown.add_section()
    shown.add_row("most at once, beside the weights", megabytes(estimate.beside_weights))
    shown.add_row("engines that are bound, each at its sizes (number)", str(estimate.contexts))
    shown.add_row("free now, the weights being loaded", "unknown" if free is None else megabytes(free))
    return shown
