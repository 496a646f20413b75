"""How `recalcd status` looks on a terminal: one screen. Pure."""

from daemon.render import columns, counted, duration
from daemon.render_look import paused
from daemon.status import DaemonStatus, Status, TopicStatus

SHOWN = 10
"""Problems named on the screen."""


def status_text(status: Status) -> str:
    """Return what `recalcd status` prints; the first line is the verdict."""
    parts = [status.verdict]
    if len(status.problems) > 1:
        parts += [f"  - {each}" for each in status.problems[:SHOWN]]
    parts += [
        f"  {each.topic} is {paused(each.paused_at, each.paused_reason)}" for each in status.paused if each.paused_at
    ]
    topics = columns([_TOPIC_HEADER, *map(_topic_row, status.topics)], right=range(1, len(_TOPIC_HEADER)))
    return "\n".join([*parts, "", topics, "", _daemons_text(status), "", _server_text(status)])


_TOPIC_HEADER = ("TOPIC", "EVENTS", "KEYS", "OLDEST", "RETRYING", "DEAD", "P50", "P95", "P99", "EVENTS/RECALC")


def _topic_row(topic: TopicStatus) -> tuple[str, ...]:
    per_key = topic.events_per_recalculation
    return (
        topic.topic + ("" if topic.is_registered else " (unknown)") + (" (paused)" if topic.paused_at else ""),
        f"{topic.pending_events:,}",
        f"{topic.pending_keys:,}",
        duration(topic.oldest_claimable_s),
        f"{topic.retrying_keys:,}",
        f"{topic.dead_keys:,}",
        duration(topic.freshness_p50_s),
        duration(topic.freshness_p95_s),
        duration(topic.freshness_p99_s),
        "-" if per_key is None else f"{per_key:.1f}",
    )


_DAEMON_HEADER = ("DAEMON", "PID", "VERSION", "SEEN", "STATE", "LAST FIVE MINUTES")


def _daemons_text(status: Status) -> str:
    if not status.daemons:
        return "no daemon within the hour"
    return columns([_DAEMON_HEADER, *map(_daemon_row, status.daemons)])


def _daemon_row(daemon: DaemonStatus) -> tuple[str, ...]:
    did = f"{counted(daemon.batch_count, 'batch', 'batches')} of {counted(daemon.key_count, 'key')}"
    return (
        daemon.host,
        str(daemon.pid),
        daemon.version,
        f"{duration(daemon.seen_s)} ago",
        daemon.state,
        f"{did}, the last {duration(daemon.last_batch_s)} ago" if daemon.batch_count else "-",
    )


def _server_text(status: Status) -> str:
    server = status.server
    oldest = server.pins[0] if server.pins else None
    horizon = f"held by {oldest} since {oldest.since}" if oldest else "not held"
    return columns(
        [
            ("horizon", horizon),
            ("outbox.event", f"{server.outbox_bytes / 1e6:,.1f} MB, {counted(server.dead_rows, 'dead row')}"),
            ("NOTIFY queue", f"{server.notify_queue_usage:.0%} full"),
        ]
    )
