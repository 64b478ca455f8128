"""Metrics, logs and traces for operators."""

import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from adacache_engines.errors import InputError, MissingDependencyError
from adacache_serve.jobs.service import Service
from adacache_serve.jobs.store import Store
from adacache_serve.jobs.tracing import Traced, Untraced, open_tracer
from adacache_serve.logs import Lines, about
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.serving.http_jobs import ended
from tests.helpers.waiting import until
from tools.speed.serving import status_load

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OpenTelemetry collector: its URL, and the spans that it received."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, collector: tuple[str, list[Any]]
) -> Iterator[tuple[httpx.Client, Service, dict[str, dict[str, Any]]]]:
    """A traced server that has made some videos, and these videos."""
    folder = tmp_path_factory.mktemp("metrics")
    write_model(folder / "fake")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[0])
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        made = service(Settings(folder / "data"), folder / "fake")
    orders = {
        "traced": {"prompt": "boat", "policy": "interval-2", "steps": 6},
        "measured": {"prompt": "boat", "policy": "adacache-fast", "steps": 9},
        "broken": {"prompt": "break"},
        "cancelled": {"prompt": "slow", "steps": 900},
    }
    headers = {"traced": {"traceparent": CLIENT}, "measured": {"traceparent": "no such thing"}}
    with served(made) as client:
        videos = {}
        for name, order in orders.items():
            answer = client.post("/v1/videos", json=order, headers=headers.get(name, {})).json()
            if name == "cancelled":
                until(lambda video=answer: client.get(f"/v1/videos/{video['id']}").json()["trace"])
                client.delete(f"/v1/videos/{answer['id']}")
            videos[name] = ended(client, answer["id"])
        yield client, made, videos


def samples(client: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name.removeprefix("adacache_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_those_of_what_was_made(made: tuple[httpx.Client, Service, dict[str, dict[str, Any]]]) -> None:
    client, _, videos = made
    until(lambda: samples(client)["memory_planned_bytes", (("device", "default"),)] == 0)
    found = samples(client)

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted({**labels, "model": "fake"}.items()))]

    slow_calls = videos["cancelled"]["trace"]["calls"] if videos["cancelled"]["trace"] else 0
    computed = sum(videos[name]["trace"]["computed"] for name in ("traced", "measured"))
    cached = 6 + 9 - computed
    assert value("calls_total", kind="cached") == cached > 0
    assert value("calls_total", kind="computed") >= computed + slow_calls
    every = value("calls_total", kind="computed") + cached
    assert value("cache_hit_ratio") == pytest.approx(cached / every)
    assert value("call_seconds_count", kind="cached") == cached
    assert value("stage_seconds_count", part="blocks") == every
    assert value("distance_count") > 0
    assert value("jobs_submitted_total") == 4
    assert value("jobs_ended_total", status="completed") == 2
    assert value("job_failures_total", code="EngineError") == 1
    assert value("phase_seconds_count", phase="encode") == 4
    assert value("phase_seconds_count", phase="denoise") == 3
    assert value("phase_seconds_count", phase="decode") == 2
    assert value("job_seconds_count") == 2
    device = (("device", "default"),)
    assert found["memory_budget_bytes", device] > 0
    assert found["memory_free_bytes", device] > 0
    assert found["jobs_waiting_for_memory", device] == 0
    assert found["worker_resident_bytes", device] > 10**7
    assert found["workers_ready", ()] == 1
    assert {found["jobs", (("status", status),)] for status in ("queued", "in_progress")} == {0}


def test_no_series_is_of_a_job_or_a_client(made: tuple[httpx.Client, Service, dict[str, dict[str, Any]]]) -> None:
    """Clients' choices make no series: their number stays the same, however many different requests come."""
    client, _, videos = made
    before = samples(client).keys()
    labels = {key for _, pairs in before for key, _ in pairs}
    assert labels <= {"model", "kind", "part", "phase", "status", "code", "device", "le"}
    assert not any(video["id"] in str(before) for video in videos.values())
    for seed in range(3):
        order = {"prompt": f"boat {seed}", "policy": "interval-2", "steps": 2 + seed}
        video = client.post("/v1/videos", json=order).json()
        ended(client, video["id"])
    assert samples(client).keys() == before


def test_a_trace_has_what_became_of_the_job(
    made: tuple[httpx.Client, Service, dict[str, dict[str, Any]]], collector: tuple[str, list[Any]]
) -> None:
    """Each job has one trace, from its submission to its result, below the client's own span where it sent one."""
    _, _, videos = made

    def of(name: str) -> dict[str, Any]:
        return {
            span.name: span
            for span in list(collector[1])
            if any(a.key == "adacache.job" and a.value.string_value == videos[name]["id"] for a in span.attributes)
        }

    whole = {"submit", "queued", "encode", "denoise", "decode", "publish"}
    for name, expected in (
        ("traced", whole),
        ("measured", whole),
        ("broken", {"submit", "queued", "encode", "failed"}),
        ("cancelled", {"submit", "queued", "encode", "denoise", "cancelled"}),
    ):
        until(lambda name=name, expected=expected: of(name).keys() == expected)
        spans = of(name)
        assert len({span.trace_id for span in spans.values()}) == 1
        submit = spans["submit"]
        assert all(span.parent_span_id == submit.span_id for span in spans.values() if span is not submit)
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans.values())
    traced = of("traced")
    assert traced["submit"].trace_id.hex() == TRACE
    assert traced["submit"].parent_span_id.hex() == PARENT
    order = [traced[name].start_time_unix_nano for name in ("queued", "encode", "denoise", "decode")]
    assert order == sorted(order)
    known = {a.key: a.value for a in traced["publish"].attributes}
    assert known["adacache.computed"].int_value == videos["traced"]["trace"]["computed"]
    assert of("measured")["submit"].parent_span_id == b""
    assert of("broken")["encode"].status.message == "EngineError"
    assert of("broken")["failed"].status.code == 2
    assert of("cancelled")["denoise"].status.message == "cancelled"


def test_a_trace_goes_on_after_a_restart(tmp_path: Path) -> None:
    """The trace context is stored with the job, so that another process continues the trace."""
    first, second = InMemorySpanExporter(), InMemorySpanExporter()
    order, url = CreateVideo(prompt="boat"), f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    before, after = Traced(first), Traced(second)
    with closing(Store(url)) as store:
        store.add("video_1", "me", order, "fake", "", traceparent=before.submitted("video_1", "fake", order, CLIENT))
    before.close()
    with closing(Store(url)) as store:
        store.cancel("video_1")
        after.ended(store.get("video_1"), "")
    after.close()
    (submit,), (cancelled,) = first.get_finished_spans(), second.get_finished_spans()
    assert (submit.name, cancelled.name) == ("submit", "cancelled")
    assert cancelled.context.trace_id == submit.context.trace_id == int(TRACE, 16)
    assert cancelled.parent.span_id == submit.context.span_id


@pytest.mark.slow
def test_status_calls_are_quick_while_videos_are_made(tmp_path: Path) -> None:
    """At best of three tries, as the machine may be busy with other things."""
    write_model(tmp_path / "fake")
    with served(service(Settings(tmp_path / "data", drain_seconds=0), tmp_path / "fake")) as client:
        tries = [status_load(client, {"prompt": "slow"}, seconds=3) for _ in range(3)]
    assert min(found["p95_ms"] for found in tries) < 50
    assert max(found["per_second"] for found in tries) > 20


def test_nothing_is_imported_where_nothing_is_configured() -> None:
    code = (
        "import sys\n"
        "from adacache_serve.jobs import service\n"  # and not the web framework, which looks for some of it itself
        "from adacache_serve.jobs.tracing import open_tracer\n"
        "open_tracer({})\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tracing_is_configured_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_tracer({}), Untraced)
    assert isinstance(
        open_tracer({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}), Untraced
    )
    assert isinstance(open_tracer({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}), Untraced)
    for configured in ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, {"OTEL_TRACES_EXPORTER": "console"}):
        opened = open_tracer(configured)
        assert isinstance(opened, Traced)
        opened.close()
    with pytest.raises(InputError, match="OTEL_TRACES_EXPORTER=zipkin is not supported; choose otlp, console or none"):
        open_tracer({"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(InputError, match="PROTOCOL=grpc is not supported; choose http/protobuf"):
        open_tracer({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependencyError, match=r'pip install "adacache-export\[otel\]"'):
        open_tracer({"OTEL_TRACES_EXPORTER": "otlp"})


@contextmanager
def logged(name: str) -> Iterator[list[dict[str, Any]]]:
    """Collect the lines that a logger would write."""
    lines: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(Lines().format(record)))

    logger, handler = logging.getLogger(name), Handler()
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def test_a_line_has_the_job_that_it_is_about() -> None:
    """Libraries' records and warnings have it too, and those of other jobs do not."""
    log = logging.getLogger("some.library")
    with logged("some.library") as lines:
        log.warning("before")
        with about("video_1"):
            log.warning("in\nside %s", {"a": 1})
            with about("video_2"):
                log.warning("deeper", extra={"seconds": 1.5})
            log.warning("another's", extra={"job": "video_3"})
        log.warning("after")
    assert [line.get("job") for line in lines] == [None, "video_1", "video_2", "video_3", None]
    assert lines[1]["message"] == "in\nside {'a': 1}"
    assert lines[2]["seconds"] == 1.5
    with logged("py.warnings") as lines, about("video_4"), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        try:
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        finally:
            logging.captureWarnings(False)
    assert lines[0]["job"] == "video_4"
    assert "DeprecationWarning: old" in lines[0]["message"]
