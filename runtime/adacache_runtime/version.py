"""The version of the installed project."""

from importlib.metadata import PackageNotFoundError, version


def project_version() -> str:
    """Return the version of the installed distribution, or ``unknown`` where the sources were never installed."""
    try:
        return version("adacache-export")
    except PackageNotFoundError:
        return "unknown"
