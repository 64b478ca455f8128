"""A PostgreSQL server for tests, on a Unix socket in a temporary folder."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
USER = "postgres"  # that runs it where we are root, which it refuses to be


def program(name: str) -> str | None:
    return next((str(folder / name) for folder in reversed(BIN) if (folder / name).exists()), shutil.which(name))


def missing() -> str | None:
    """Return why no server can be started; None = it can."""
    if program("initdb") is None or program("postgres") is None:
        return "PostgreSQL's programs are not installed"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(USER)
        except KeyError:
            return f"PostgreSQL does not run as root, and there is no user {USER}"
        if shutil.which("setpriv") is None:
            return "PostgreSQL does not run as root, and setpriv is not installed"
    return None


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a server; yield its URL."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path is short; pytest's folders are closed
    before: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
        before = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    data = folder / "data"
    quick = ["-c", "fsync=off", "-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"]
    try:
        initdb = [program("initdb"), "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*before, *map(str, initdb)], check=True, capture_output=True, cwd=folder)
        process = subprocess.Popen(
            [*before, str(program("postgres")), "-D", str(data), *quick],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        try:
            yield f"postgresql://{USER}@/{USER}?host={folder}"
        finally:
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for whoever is connected
            process.wait()
    finally:
        shutil.rmtree(folder)
