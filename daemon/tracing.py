"""Spans for OpenTelemetry. Needs the extra `otel`; imported only when RECALCD_OTEL_ENABLED is set.

Where they go, and how, is up to the variables that OpenTelemetry defines: OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and so on. They are sent by a thread of the library's own; what can't be sent is
dropped.
"""

import atexit
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from daemon import __version__
from daemon.redaction import error_facts, redact
from daemon.spans import EndedSpan

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Tracing:
    """Turns each of our spans into one of OpenTelemetry's, in a trace of its own.

    It links to the traces of the writers whose events it did: a batch has many, so none of them can be its parent.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        """Take what sends the spans."""
        ours = Resource.create({SERVICE_NAME: "recalcd", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("recalcd", __version__)
        atexit.register(self.close)

    @classmethod
    def to_collector(cls) -> Self:
        """Send spans by OTLP over HTTP."""
        return cls(BatchSpanProcessor(OTLPSpanExporter()))

    def record(self, span: EndedSpan) -> None:
        """Hand over a span that has ended."""
        started_ns = (span.started_at - _EPOCH) // _MICROSECOND * 1000
        told = self._tracer.start_span(
            span.route,
            context=Context(),
            kind=SpanKind.CONSUMER if span.route.startswith("recalculate.") else SpanKind.INTERNAL,
            attributes=_attributes(span),
            links=links_to(span.params.get("traceparent")),
            start_time=started_ns,
        )
        if span.error is not None:
            told.set_status(Status(StatusCode.ERROR))
        told.end(started_ns + round(span.duration_s * 1e9))

    def close(self) -> None:
        """Send what is left; takes no longer than OTEL_EXPORTER_OTLP_TIMEOUT."""
        atexit.unregister(self.close)
        self._provider.shutdown()


def links_to(traceparents: object) -> list[Link]:
    """Return links to W3C trace contexts that are separated by commas; [] for None."""
    found = _TRACEPARENT.findall(traceparents) if isinstance(traceparents, str) else []
    return [
        Link(SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))))
        for trace, span, flags in found
    ]


def _attributes(span: EndedSpan) -> Mapping[str, str | int | float | bool]:
    """Return what may leave the house: names and counts. An error's message may quote a key, so it stays here."""
    found = {f"recalcd.{name}": value for name, value in span.params.items() if name != "traceparent"}
    found["code.function.name"] = span.function
    if span.error is not None:
        facts = error_facts(span.error)
        found |= {"error.type": facts.sqlstate or facts.type, "db.response.status_code": facts.sqlstate}
    return {name: _plain(value) for name, value in found.items() if value is not None}


def _plain(value: object) -> str | int | float | bool:
    return value if isinstance(value, int | float | bool) else redact(str(value))
