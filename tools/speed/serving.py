"""Measure a server that makes several videos in turn against one that makes them one after another.

    python -m tools.speed.serving BUNDLE [--rounds N] [--results FOLDER]

A server for each number of generations in flight, all on this machine, gets the same jobs at once: long ones first, and
short ones behind them. The servers have their rounds in turn, so that a machine that slows down does so for all. Then
one of them is asked for the status of its jobs, again and again, while it makes videos.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

IN_FLIGHT = (1, 2, 4)  # the first is what the others are compared with
LONG: Mapping[str, Any] = {"prompt": "a red circle moves left fast", "frames": 12, "steps": 30}
SHORT: Mapping[str, Any] = {
    "prompt": "a blue square moves right slow",
    "frames": 8,
    "steps": 10,
    "policy": "adacache-fast",
}
MIX = (("long", LONG), ("long", LONG), *(("short", SHORT),) * 6)
POLL_SECONDS = 0.05
STATUS_SECONDS = 10.0
CLIENTS = 4
COMMAND = "import sys; from adacache_serve.commands.serve import main; sys.exit(main())"
HEAD = """# Several videos in turn on one device

Made by `python -m tools.speed.serving BUNDLE --results tools/results`, with the demo model on {cores} CPU cores.
{long} long jobs ({long_text}), and {short} short ones behind them ({short_text}), all at once, {rounds} rounds; servers
with one, two and four generations in flight had their rounds in turn. Ratios to one after another, of the same round;
the median, and from the smallest to the largest round.

"""


@dataclass
class Round:
    """The seconds of each job on one server."""

    seconds: float
    waited: dict[str, list[float]] = field(default_factory=lambda: {"long": [], "short": []})
    took: dict[str, list[float]] = field(default_factory=lambda: {"long": [], "short": []})

    def numbers(self) -> dict[str, float]:
        """Return the numbers that are compared."""
        found = {"jobs per second": len(MIX) / self.seconds}
        for kind in ("short", "long"):
            for what, values in (("waiting", self.waited[kind]), ("completion", self.took[kind])):
                found[f"{what} of {kind} jobs, mean"] = statistics.fmean(values)
                found[f"{what} of {kind} jobs, p95"] = p95(values)
        return found


def p95(values: Sequence[float]) -> float:
    """Return the least number that 95 % of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


@contextmanager
def server(bundle: Path, folder: Path, in_flight: int) -> Iterator[httpx.Client]:
    """Start a server in a process of its own; yield a client for it, once it is ready."""
    options = ["--port", "0", "--data", str(folder), "--in-flight", str(in_flight), "--drain-seconds", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(bundle), *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines: list[str] = []
    drain = threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True)
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://[^ ]+", line):
                break
        else:
            raise RuntimeError("the server ended: " + "".join(lines))
        drain.start()
        with httpx.Client(base_url=found.group(), timeout=60) as client:
            while not ready(client):
                time.sleep(POLL_SECONDS)
            yield client
    finally:
        process.terminate()
        process.wait()
        if drain.ident is not None:  # it was started
            drain.join()
        process.stderr.close()


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.ConnectError:  # it does not listen yet
        return False


def one_round(client: httpx.Client) -> Round:
    """Send all jobs at once, and wait until the last has its video."""
    began = time.perf_counter()
    kinds = {client.post("/v1/videos", json=dict(order)).json()["id"]: kind for kind, order in MIX}
    done: list[dict[str, Any]] = []
    while len(done) < len(MIX):
        time.sleep(POLL_SECONDS)
        completed = client.get("/v1/videos", params={"status": "completed", "limit": len(MIX)}).json()["data"]
        done = [video for video in completed if video["id"] in kinds]
    made = Round(time.perf_counter() - began)
    for video in done:
        kind = kinds[video["id"]]
        made.waited[kind].append(video["started_at"] - video["created_at"])
        made.took[kind].append(video["completed_at"] - video["created_at"])
    return made


def status_load(
    client: httpx.Client, order: Mapping[str, Any] = LONG, seconds: float = STATUS_SECONDS, clients: int = CLIENTS
) -> dict[str, float]:
    """Ask for statuses from several clients, each again as soon as it has its answer, while videos are made."""
    names = [client.post("/v1/videos", json={**order, "steps": 900}).json()["id"] for _ in range(4)]
    while not all(client.get(f"/v1/videos/{name}").json()["trace"] for name in names[:1]):
        time.sleep(POLL_SECONDS)
    times: list[float] = []
    until = time.perf_counter() + seconds

    def ask(name: str) -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while time.perf_counter() < until:
                began = time.perf_counter()
                own.get(f"/v1/videos/{name}").raise_for_status()
                times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask, args=(names[number % len(names)],)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running = [client.get(f"/v1/videos/{name}").json()["status"] for name in names]
    for name in names:
        client.delete(f"/v1/videos/{name}")
    if "in_progress" not in running:
        raise RuntimeError(f"no video was being made at the end: {running}")
    return {"per_second": len(times) / seconds, "p50_ms": 1e3 * statistics.median(times), "p95_ms": 1e3 * p95(times)}


def table(rounds: Mapping[int, Sequence[Round]]) -> list[str]:
    """Return a Markdown table with a row for each number and a column for each server."""
    first, *others = rounds
    lines = [
        "| | one after another | " + " | ".join(f"{count} in flight, ratio" for count in others) + " |",
        "|---|---|" + "---|" * len(others),
    ]
    numbers = {count: [made.numbers() for made in of] for count, of in rounds.items()}
    for row in numbers[first][0]:
        base = [found[row] for found in numbers[first]]
        cells = [f"{statistics.median(base):.2f}" + ("" if row.endswith("second") else " s")]
        for count in others:
            ratios = [found[row] / max(one, 1e-3) for found, one in zip(numbers[count], base, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def text_of(order: Mapping[str, Any]) -> str:
    return f"{order['frames']} frames, {order['steps']} steps, {order.get('policy', 'never reusing')}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, help="put the table there, such as tools/results")
    options = parser.parse_args()
    rounds: dict[int, list[Round]] = {count: [] for count in IN_FLIGHT}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clients = {
            count: stack.enter_context(server(options.bundle, Path(folder, str(count)), count)) for count in IN_FLIGHT
        }
        for number in range(options.rounds):
            for count, client in clients.items():
                made = one_round(client)
                rounds[count].append(made)
                print(f"round {number + 1}, {count} in flight: {made.seconds:.1f} s", file=sys.stderr)
        load = status_load(clients[max(IN_FLIGHT)])
    lines = table(rounds)
    lines += [
        "",
        f"While four videos were made in turn, {CLIENTS} clients that ask again as soon as they have their answer got "
        f"{load['per_second']:.0f}",
        f"status calls a second; half of them took less than {load['p50_ms']:.1f} ms, 95 % less than "
        f"{load['p95_ms']:.1f} ms.",
    ]
    print("\n".join(lines))
    if options.results:
        kinds = [kind for kind, _ in MIX]
        head = HEAD.format(
            cores=len(os.sched_getaffinity(0)),
            rounds=options.rounds,
            long=kinds.count("long"),
            short=kinds.count("short"),
            long_text=text_of(LONG),
            short_text=text_of(SHORT),
        )
        (options.results / "serving.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
