"""The operational log: structlog set-up and every event name; and span(), whose lines go to a file of their own.

Event names and keys are public, like columns: a rename goes into the changelog. Facts go in keys, never in the text;
keys end in _ms, _s, _bytes, _count or _at where they hold such. No payload, DSN or name of a person is among them.
"""

import logging
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from daemon.redaction import HIDDEN, error_facts, error_trace, redact
from daemon.settings import Settings, no_color
from daemon.spans import Recorder, Span, SpanFile

if TYPE_CHECKING:
    from daemon.tracing import Tracing

DAEMON_STARTED = "daemon.started"
DRAIN_WAITING = "drain.waiting"
DRAIN_LEFT_DEAD = "drain.left_dead"
DRAIN_LEFT_BROKEN = "drain.left_broken"
DRAIN_LEFT_PAUSED = "drain.left_paused"
DATABASE_AWAITED = "database.awaited"
DAEMON_STOPPING = "daemon.stopping"
DAEMON_STOPPED = "daemon.stopped"
PROCESS_CRASHED = "process.crashed"
LIBRARY_LOGGED = "library.logged"
SETTINGS_RELOADED = "settings.reloaded"
SETTINGS_REFUSED = "settings.refused"
WATCHDOG_WITHHELD = "watchdog.withheld"


SESSION_LOST = "session.lost"

LISTENER_STARTED = "listener.started"
LISTENER_LOST = "listener.lost"
LISTENER_DEGRADED = "listener.degraded"
DOORBELL_ARMED = "doorbell.armed"
DOORBELL_DISARMED = "doorbell.disarmed"

BATCH_COMMITTED = "batch.committed"
BATCH_FAILED = "batch.failed"
BATCH_RETRIED = "batch.retried"
BATCH_VANISHED = "batch.vanished"
KEY_FAILED = "key.failed"
KEY_DIED = "key.died"
TOPIC_BROKEN = "topic.broken"

PARTITION_CREATED = "partition.created"
PARTITION_DROPPED = "partition.dropped"
HOUSEKEEPING_FAILED = "housekeeping.failed"

METRICS_SERVED = "metrics.served"
METRICS_UNAVAILABLE = "metrics.unavailable"
METRICS_FAILED = "metrics.failed"
TELEMETRY_FAILED = "telemetry.failed"
TELEMETRY_RESUMED = "telemetry.resumed"

JOB_STARTED = "job.started"
JOB_ADVANCED = "job.advanced"
JOB_ENDED = "job.ended"
VERIFY_STARTED = "verify.started"
VERIFY_DRIFTED = "verify.drifted"
VERIFY_FAILED = "verify.failed"
VERIFY_FINISHED = "verify.finished"
AUDIT_FAILED = "audit.failed"

log: FilteringBoundLogger = structlog.get_logger()

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SECRET_KEYS = frozenset({"database_url", "dsn", "password"})


def configure(settings: Settings, *recorders: Recorder) -> None:
    """Set up the log and the spans; again, with new settings, on SIGHUP.

    recorders are told of every span, whatever TELEM_PATH selects.
    """
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and _is_terminal())
    structlog.configure(
        processors=[*_SHARED, _text_renderer() if as_text else structlog.processors.JSONRenderer(default=str)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=lambda *_: _Lines(sys.stderr),
        cache_logger_on_first_use=False,  # or a reload would not reach the loggers in use
    )
    _adopt_logging()
    sys.excepthook = _log_crash
    _spans.configure(settings, recorders)


def span(route: str, function: str, **params: object) -> Span:
    """Measure what happens inside a with statement.

    route is a dotted tag that TELEM_PATH selects by: recalculate.reports.student.
    function is what runs: outbox.recalculate.
    """
    return Span(_spans.recorders_of(route), route, function, params)


def error_keys(error: BaseException) -> dict[str, str | None]:
    """Return the keys that every logged failure carries."""
    facts = error_facts(error)
    return {"sqlstate": facts.sqlstate, "error_type": facts.type, "error": facts.message}


class _Lines:
    """Writes finished lines to stderr. structlog calls it by the level's name."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        if self._stream is None:  # started with stderr closed
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return  # a full disk or a closed pipe behind stderr: nobody is left to tell, and the work goes on

    debug = info = warning = error = critical = msg


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _explain_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Turn exc_info into facts and a trace without row values."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else None
    if given is True:
        error = sys.exception()
    if error is not None:
        event.update(error_keys(error), exception=error_trace(error))
    return event


def _redact_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: HIDDEN if key in _SECRET_KEYS else _redacted(value) for key, value in event.items()}


def _put_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Begin every line with what a reader looks for."""
    return {key: event.pop(key) for key in ("timestamp", "level", "event")} | dict(event)


def _redacted(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case dict():
            return {key: _redacted(each) for key, each in value.items()}
        case list() | tuple():
            return [_redacted(each) for each in value]
        case BaseException():
            return error_facts(value).message
    return value


_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _explain_exception,
    _redact_values,
    _put_first,
)


def _text_renderer() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors=_is_terminal() and not no_color())


class _FromLibraries(logging.Handler):
    """Passes on what asyncio and others log, so that stderr holds one kind of line."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text = text.partition("\n")[0]  # asyncio goes on with the task's repr, and that with the error's
        log.log(record.levelno, LIBRARY_LOGGED, logger=record.name, text=text, exc_info=record.exc_info)


def _adopt_logging() -> None:
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, _FromLibraries)]
    root.addHandler(_FromLibraries(logging.WARNING))


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical(PROCESS_CRASHED, exc_info=error)


class _Spans:
    """Where spans go now; nowhere until configured, and to no file unless TELEM_ENABLED."""

    def __init__(self) -> None:
        self._tracing: Tracing | None = None
        self._others: tuple[Recorder, ...] = ()
        self._started_at = datetime.now(UTC)
        self._file: SpanFile | None = None
        self._prefixes: tuple[str, ...] = ()
        self._routes: frozenset[str] = frozenset()

    def configure(self, settings: Settings, recorders: tuple[Recorder, ...]) -> None:
        self._configure_file(settings)
        self._configure_tracing(settings)
        self._others = (*recorders, self._tracing) if self._tracing else recorders

    def _configure_tracing(self, settings: Settings) -> None:
        if self._tracing and not settings.otel_enabled:
            self._tracing.close()
            self._tracing = None
        if settings.otel_enabled and not self._tracing:
            from daemon.tracing import Tracing  # noqa: PLC0415  # its libraries are an extra, and slow to import

            self._tracing = Tracing.to_collector()

    def _configure_file(self, settings: Settings) -> None:
        """Keep the file unless telemetry ended or its folder changed: one file per process."""
        self._routes = frozenset(settings.telem_routes)
        self._prefixes = tuple(route + "." for route in settings.telem_routes)
        if self._file and not (settings.telem_enabled and settings.telem_dir == self._file.folder):
            self._file.close()
            self._file = None
        if settings.telem_enabled and not self._file:
            self._file = SpanFile(
                settings.telem_dir, started_at=self._started_at, failed=self._failed, resumed=self._resumed
            )

    def recorders_of(self, route: str) -> tuple[Recorder, ...]:
        """Match tags as prefixes that end at a dot: `report` is `report` and `report.student`, never `reports`."""
        selects = not self._routes or route in self._routes or route.startswith(self._prefixes)
        return (self._file, *self._others) if self._file and selects else self._others

    def _failed(self, error: OSError) -> None:
        folder = str(self._file.folder) if self._file else None
        log.warning(TELEMETRY_FAILED, folder=folder, **error_keys(error))

    def _resumed(self, lost_count: int) -> None:
        log.warning(TELEMETRY_RESUMED, lost_count=lost_count)


_spans = _Spans()
