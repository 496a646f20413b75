"""The daemon's metrics for Prometheus. Needs the extra `metrics`; imported only when RECALCD_METRICS_LISTEN is set.

Counters and histograms are the daemon's own: sum() them. What is said of topics and of the server is the database's,
the same from every daemon: max() it. Labels are topics of the registry, never keys. Names are public, like columns.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import asyncpg
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from daemon import __version__, telemetry
from daemon.batch import Batch
from daemon.careful import Failure, Outcome
from daemon.measurement import MOST_COUNTED, Measurement, measure
from daemon.spans import EndedSpan
from daemon.telemetry import log

FRESHNESS_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
RECALCULATION_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_OF_ALL = " Of the database, so every daemon says the same: use max(), not sum()."

ListenerState = Literal["listening", "degraded", "off"]


class Metrics:
    """Counts what this daemon does, and remembers what it last read of the database. Survives a reload."""

    def __init__(self) -> None:
        """Start at zero, in a registry of our own."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use to Prometheus
        self.registry = CollectorRegistry()
        self.listener_state: Callable[[], ListenerState] = lambda: "off"
        self.measurement: Measurement | None = None
        Info("recalcd_build", "The version that runs.", registry=self.registry).info({"version": __version__})
        ProcessCollector(registry=self.registry)
        self.registry.register(_Gauges(self))
        self._freshness_s = self._histogram(
            "recalcd_freshness_seconds",
            "From the writing of a batch's oldest event, just before its commit, to the commit of the recalculation; "
            "one observation per batch that took events.",
            FRESHNESS_BUCKETS_S,
        )
        self._recalculation_s = self._histogram(
            "recalcd_recalculation_seconds",
            "Time of one call of a topic's procedure, for all keys of a batch; failed calls included.",
            RECALCULATION_BUCKETS_S,
        )
        self._errors = self._counter("recalcd_recalculation_errors", "Calls of a topic's procedure that failed.")
        self._batches = self._counter("recalcd_batches", "Batches committed.")
        self._events = self._counter("recalcd_events", "Events whose recalculation was committed.")
        self._keys = self._counter("recalcd_keys", "Keys whose recalculation was committed.")
        self._changed_keys = self._counter("recalcd_changed_keys", "Keys whose cached rows a recalculation changed.")
        self._key_failures = self._counter("recalcd_key_failures", "Failed attempts that were noted with their key.")
        self._key_deaths = self._counter("recalcd_key_deaths", "Keys that used up their attempts.")

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(name, documentation, ["topic"], registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, documentation, ["topic"], registry=self.registry, buckets=buckets)

    def record(self, span: EndedSpan) -> None:
        """Take note of a recalculation that ended, well or not; of no other span."""
        if span.route.startswith("recalculate."):
            topic = span.params["topic"]
            self._recalculation_s.labels(topic).observe(span.duration_s)
            self._errors.labels(topic).inc(span.error is not None)

    def report(self, outcome: Outcome) -> None:
        """Take note of what a worker committed."""
        if isinstance(outcome, Failure):
            self._key_failures.labels(outcome.topic).inc()
            self._key_deaths.labels(outcome.topic).inc(outcome.state == "dead")
        elif outcome.claim.keys:
            self._committed(outcome)

    def _committed(self, batch: Batch) -> None:
        claim = batch.claim
        self._batches.labels(claim.topic).inc()
        self._events.labels(claim.topic).inc(claim.event_count)
        self._keys.labels(claim.topic).inc(len(claim.keys))
        self._changed_keys.labels(claim.topic).inc(len(batch.changed_keys or ()))
        if claim.oldest_event_at:
            # On the database's clock up to the claim, on the monotonic one from there: neither steps.
            waited_s = (claim.started_at - claim.oldest_event_at).total_seconds()
            self._freshness_s.labels(claim.topic).observe(waited_s + time.monotonic() - claim.asked_at)

    async def read(self, connection: asyncpg.Connection) -> None:
        """Read the database's part anew. What the database refuses is logged: no round ends for a metric."""
        try:
            self.measurement = await measure(connection)
        except asyncpg.PostgresError as error:
            log.warning(telemetry.METRICS_FAILED, **telemetry.error_keys(error))
            return
        for each in self.measurement.topics:
            self._begin_at_zero(each.topic)

    def _begin_at_zero(self, topic: str) -> None:
        """Make the topic's series, or Prometheus would take no notice of the first event, failure or death."""
        counters = (self._errors, self._batches, self._events, self._keys, self._changed_keys)
        for each in (*counters, self._key_failures, self._key_deaths, self._freshness_s, self._recalculation_s):
            each.labels(topic)


class _Gauges(Collector):
    """What is so now, put together at the scrape from what is in memory. A topic that is removed goes with the next."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield self._listener()
        if measurement := self._metrics.measurement:
            yield from _topics(measurement)
            yield from _server(measurement)

    def _listener(self) -> GaugeMetricFamily:
        now = self._metrics.listener_state()
        documentation = (
            "1 for the state that the LISTEN session is in. degraded: it was lost, or nothing arrives there. "
            "off: not asked for, or no database yet."
        )
        family = GaugeMetricFamily("recalcd_listener_state", documentation, labels=["state"])
        for state in get_args(ListenerState):
            family.add_metric([state], state == now)
        return family


def _topics(measurement: Measurement) -> Iterator[GaugeMetricFamily]:
    told: dict[str, tuple[str, str]] = {
        "pending_events": ("pending_events", f"Events that wait, counted up to {MOST_COUNTED:,}."),
        "oldest_claimable_s": (
            "oldest_claimable_seconds",
            "Age of the oldest event whose key is not in backoff; 0 when there is none.",
        ),
        "retrying_keys": ("retrying_keys", "Keys that failed and will be tried again."),
        "dead_keys": ("dead_keys", "Keys that used up their attempts and wait for an operator."),
        "drifted_keys": ("drifted_keys", "Keys that a verification found drifted and nobody has recalculated since."),
        "is_paused": ("paused", "1 while an operator has paused the topic."),
    }
    for field, (name, documentation) in told.items():
        family = GaugeMetricFamily(f"recalcd_topic_{name}", documentation + _OF_ALL, labels=["topic"])
        for each in measurement.topics:
            family.add_metric([each.topic], float(getattr(each, field)))
        yield family


def _server(measurement: Measurement) -> Iterator[GaugeMetricFamily]:
    server = measurement.server
    told: dict[str, tuple[float, str]] = {
        "recalcd_measured_timestamp_seconds": (
            measurement.taken_at,
            "When this daemon last read what it tells of the database, in seconds since 1970.",
        ),
        "recalcd_horizon_age_seconds": (
            max((pin.age_s or 0.0 for pin in server.pins), default=0.0),
            "Age of the oldest transaction that keeps deleted rows from being vacuumed." + _OF_ALL,
        ),
        "recalcd_horizon_age_transactions": (
            max((pin.age_xids for pin in server.pins), default=0),
            "The same in transactions, which slots and standbys have, too." + _OF_ALL,
        ),
        "recalcd_notify_queue_usage_ratio": (
            server.notify_queue_usage,
            "How full the queue of notifications is; at 1, every commit that notifies fails." + _OF_ALL,
        ),
        "recalcd_outbox_dead_rows": (
            server.dead_rows,
            "Rows of outbox.event that vacuum has still to remove." + _OF_ALL,
        ),
    }
    for name, (value, documentation) in told.items():
        yield GaugeMetricFamily(name, documentation, value=value)
