"""How topics, failures and the story of a key look on a terminal. Pure."""

from collections.abc import Sequence
from datetime import datetime

from daemon.failures import Failure, FailureList
from daemon.render import columns, duration
from daemon.topics import Entry

MESSAGE_WIDTH = 60

_TOPIC_HEADER = ("TOPIC", "RECALCULATES WITH", "LISTS KEYS WITH", "ATTEMPTS", "RETRY", "BATCH", "TIMEOUT", "STATE")


def topics_text(topics: Sequence[Entry]) -> str:
    """Return what `recalcd topic list` prints."""
    if not topics:
        return "no topic is registered: `recalcd topic add` registers one"
    return columns([_TOPIC_HEADER, *map(_topic_row, topics)], right=(3, 5))


def _topic_row(topic: Entry) -> tuple[str, ...]:
    return (
        topic.topic,
        topic.recalculate,
        topic.list_keys or "-",
        str(topic.max_attempts),
        f"{duration(topic.retry_base_s)} to {duration(topic.retry_max_s)}",
        f"{topic.batch_keys:,} keys",
        duration(topic.statement_timeout_s),
        paused(topic.paused_at, topic.paused_reason) if topic.paused_at else "running",
    )


def paused(since: datetime, reason: str | None) -> str:
    """Say since when a topic is paused, and why."""
    return f"paused since {moment(since)}" + (f": {reason}" if reason else "")


def moment(when: datetime) -> str:
    """Return a point in time, in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


_FAILURE_HEADER = ("TOPIC", "KEY", "STATE", "ATTEMPTS", "EVENTS", "FAILING FOR", "NEXT TRY", "ERROR")


def failures_text(found: FailureList) -> str:
    """Return what `recalcd failures list` prints; the first line counts."""
    total = found.dead_count + found.retrying_count
    if not total:
        return "no key fails"
    lines = [
        f"{found.dead_count:,} dead, {found.retrying_count:,} retrying",
        columns([_FAILURE_HEADER, *map(_failure_row, found.failures)], right=(3, 4)),
    ]
    if total > len(found.failures):
        lines.append(f"… and {total - len(found.failures):,} more (--limit)")
    return "\n".join(lines)


def _failure_row(failure: Failure) -> tuple[str, ...]:
    message = " ".join((failure.message or "").split())
    short = message if len(message) <= MESSAGE_WIDTH else message[: MESSAGE_WIDTH - 1] + "…"
    return (
        failure.topic,
        failure.key,
        failure.state,
        f"{failure.attempts:,}",
        f"{failure.event_count:,}",
        duration(failure.failing_s),
        _next_try(failure),
        f"{failure.sqlstate or '-'} {short}",
    )


def _next_try(failure: Failure) -> str:
    if failure.state == "dead":
        return "-"
    return f"in {duration(failure.next_attempt_s)}" if failure.next_attempt_s > 0 else "now"


def failure_text(failure: Failure) -> str:
    """Return what `recalcd failures show` prints: everything, each part on lines of its own."""
    remedy = (
        "dead: it waits for an operator (recalcd replay), or for its next event"
        if failure.state == "dead"
        else f"retrying: next try {_next_try(failure)}, at {moment(failure.next_attempt_at)}"
    )
    facts = [
        ("key", f"{failure.key} of {failure.topic}"),
        ("state", remedy),
        ("attempts", f"{failure.attempts:,}, with {failure.event_count:,} events waiting on them"),
        ("failing", f"for {duration(failure.failing_s)}, since {moment(failure.first_failed_at)}"),
        ("last failed", moment(failure.last_failed_at)),
        ("error", f"{failure.message or '-'} ({failure.sqlstate or 'no SQLSTATE'})"),
        *((name, text) for name in ("detail", "hint", "context") if (text := getattr(failure, name))),
    ]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name.ljust(width)}  {_indented(text, width + 2)}" for name, text in facts)


def _indented(text: str, by: int) -> str:
    return text.replace("\n", "\n" + " " * by)
