"""Spans for OpenTelemetry: linked to the writers' traces, without a key, and harmless when nobody collects them."""

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from engine import LEDGER, enqueue, make_ledger, make_topic, next_batch, record, run_at_once
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from process import daemon, recovered

from daemon import __version__, telemetry
from daemon.batch import Batch, CallFailed
from daemon.settings import Settings
from daemon.tracing import Tracing, links_to

WITHIN_S = 30.0


def traceparent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


async def write_traced(db: asyncpg.Connection, account: str, *numbers: int) -> None:
    """Write as an application that is traced, once for each trace."""
    for number in numbers:
        async with db.transaction():
            await db.execute("select set_config('recalcd.traceparent', $1, true)", traceparent(number))
            await record(db, account)


@pytest.fixture(autouse=True)
async def ledger(db: asyncpg.Connection) -> None:
    await make_ledger(db)


@pytest.fixture
def traced(settings: Settings) -> Iterator[InMemorySpanExporter]:
    """Collect the spans of this process."""
    exporter = InMemorySpanExporter()
    telemetry.configure(settings, Tracing(SimpleSpanProcessor(exporter)))
    yield exporter
    telemetry.configure(settings)


def the_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


Run = Callable[[asyncpg.Connection], Awaitable[Batch | None]]
in_both_forms = pytest.mark.parametrize("run", [next_batch, run_at_once])


@in_both_forms
async def test_a_recalculation_is_linked_to_the_traces_of_its_writers(
    db: asyncpg.Connection, traced: InMemorySpanExporter, run: Run
) -> None:
    await write_traced(db, "one", 1, 2)
    await write_traced(db, "two", 2, 3)
    await record(db, "two")  # nobody traced this one
    await run(db)
    span = the_span(traced)
    assert span.name == f"recalculate.{LEDGER}"
    assert span.kind is SpanKind.CONSUMER
    assert span.parent is None
    found = [(each.context.trace_id, each.context.span_id, each.context.is_remote) for each in span.links]
    assert sorted(found) == [(1, 1, True), (2, 2, True), (3, 3, True)]
    assert span.attributes == {
        "recalcd.topic": LEDGER,
        "recalcd.kind": "live",
        "recalcd.key_count": 2,
        "recalcd.event_count": 5,
        "recalcd.changed_count": 2,
        "code.function.name": "outbox.recalculate",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < span.end_time - span.start_time < WITHIN_S * 1e9


async def test_no_more_traces_are_linked_than_a_span_should_hold(
    db: asyncpg.Connection, traced: InMemorySpanExporter
) -> None:
    await write_traced(db, "one", *range(1, 41))
    await next_batch(db)
    assert len({each.context.trace_id for each in the_span(traced).links}) == 32


@in_both_forms
async def test_a_failed_recalculation_says_why_but_quotes_nothing(
    db: asyncpg.Connection, traced: InMemorySpanExporter, run: Run
) -> None:
    await make_topic(db, "bad", "raise exception 'no way with %', p_keys using errcode = 'P0001';")
    await enqueue(db, "bad", "ADA-LOVELACE")
    with pytest.raises(CallFailed):
        await run(db)
    span = the_span(traced)
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.attributes["db.response.status_code"]) == ("P0001", "P0001")
    assert "ADA-LOVELACE" not in span.to_json()


async def test_the_telemetry_line_names_the_writers_traces(db: asyncpg.Connection, settings: Settings) -> None:
    telemetry.configure(settings.model_copy(update={"telem_enabled": True}))
    await write_traced(db, "one", 7, 8)
    await next_batch(db)
    telemetry.configure(settings)
    (file,) = settings.telem_dir.iterdir()
    assert f'"traceparent": "{traceparent(7)},{traceparent(8)}"' in file.read_text() or (
        f'"traceparent": "{traceparent(8)},{traceparent(7)}"' in file.read_text()
    )


@pytest.mark.parametrize("text", [None, "", "no trace", 7])
def test_without_a_trace_there_is_no_link(text: object) -> None:
    assert links_to(text) == []


# --- the real daemon and the real exporter ---


@dataclass
class Collector:
    """Takes spans by OTLP over HTTP, as a collector does."""

    requests: list[ExportTraceServiceRequest] = field(default_factory=list)

    def spans(self) -> list[Any]:
        scopes = [scope for each in self.requests for group in each.resource_spans for scope in group.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def resource(self) -> dict[str, str]:
        attributes = self.requests[0].resource_spans[0].resource.attributes
        return {each.key: each.value.string_value for each in attributes}


class CollectorServer(ThreadingHTTPServer):
    collector: Collector


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = cast("CollectorServer", self.server)
        if self.path == "/v1/traces":
            server.collector.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, Collector]]:
    with CollectorServer(("127.0.0.1", 0), _Handler) as server:
        server.collector = Collector()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", server.collector
        server.shutdown()
        thread.join()


@pytest.mark.own_server
async def test_the_daemon_sends_its_spans_where_the_standard_variables_say(
    dsn: str, db: asyncpg.Connection, tmp_path: Path, collector: tuple[str, Collector]
) -> None:
    url, collected = collector
    environment = {
        "RECALCD_OTEL_ENABLED": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_SERVICE_NAME": "reports-of-the-school",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",  # so that what arrives was sent at the end
    }
    await write_traced(db, "one", 5, 6)
    async with daemon(dsn, tmp_path / "log", environment) as process:
        await recovered(db)
        assert await process.stop() == 0
    (span,) = collected.spans()
    assert span.name == f"recalculate.{LEDGER}"
    assert sorted(int.from_bytes(link.trace_id) for link in span.links) == [5, 6]
    resource = collected.resource()
    assert (resource["service.name"], resource["service.version"]) == ("reports-of-the-school", __version__)


@pytest.mark.own_server
async def test_a_collector_that_is_away_stops_neither_the_work_nor_the_end(
    dsn: str, db: asyncpg.Connection, tmp_path: Path
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: refused
        environment = {
            "RECALCD_OTEL_ENABLED": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
            "OTEL_BSP_SCHEDULE_DELAY": "10",
        }
        async with daemon(dsn, tmp_path / "log", environment) as process:
            await write_traced(db, "one", 5)
            await recovered(db)
            (told,) = (await process.until_told(telemetry.LIBRARY_LOGGED))[:1]
            assert told["logger"].startswith("opentelemetry.")
            assert await process.stop() == 0
