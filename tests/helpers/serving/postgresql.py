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


class Server:
    """A server that can be stopped and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql://{USER}@/{USER}?host={folder}"
        self._before: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
            self._before = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        initdb = [program("initdb"), "-D", folder / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*self._before, *map(str, initdb)], check=True, capture_output=True, cwd=folder)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, which accepts connections a little later."""
        quick = ["-c", "fsync=off", "-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}"]
        self.process = subprocess.Popen(
            [*self._before, str(program("postgres")), "-D", str(self.folder / "data"), *quick],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )

    def stop(self) -> None:
        """Stop the process, and cut its connections."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # SIGTERM would wait for whoever is connected
            self.process.wait()
            self.process = None


@contextmanager
def postgresql_server() -> Iterator[Server]:
    """Run a server."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path is short; pytest's folders are closed
    try:
        server = Server(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a server; yield its URL."""
    with postgresql_server() as server:
        yield server.url
