"""How the story of a key looks on a terminal. Pure."""

from daemon.explain import Done, State, Story
from daemon.render import columns, counted, duration
from daemon.render_look import failure_text, moment, paused


def story_text(story: Story) -> str:
    """Return what `recalcd explain` prints; the first line is the verdict."""
    parts = [f"{story.topic} {story.key}: {_verdict(story)}", *_remarks(story)]
    if story.events:
        parts += ["", _events_text(story)]
    if story.failure:
        parts += ["", failure_text(story.failure)]
    parts += ["", _batches_text(story)]
    return "\n".join(parts)


_VERDICTS: dict[State, str] = {
    "fresh": "fresh, nothing is pending",
    "unknown": "nothing is known of this key. Is it spelt right?",
    "unregistered": "nobody registered this topic, so its events wait for ever (recalcd topic add)",
    "dead": "STALE, dead after {attempts}. recalcd replay {topic} --key {key}",
    "retrying": "STALE, its recalculation fails and is retried",
    "running": "being recalculated now, by backend {backend}",
    "paused": "STALE, {waiting} because the topic is paused",
    "pending": "stale for the moment, {waiting} for a turn",
}


def _verdict(story: Story) -> str:
    return _VERDICTS[story.state].format(
        topic=story.topic,
        key=story.key,
        attempts=counted(story.failure.attempts if story.failure else 0, "attempt"),
        backend=next(iter(story.now.busy_with), "-"),
        waiting=_waiting(story.now.event_count),
    )


def _waiting(event_count: int) -> str:
    return "1 event waits" if event_count == 1 else f"{event_count:,} events wait"


def _remarks(story: Story) -> list[str]:
    now, found = story.now, []
    if story.cached:
        found.append(_cached_text(story))
    if story.batches:
        found.append(f"last recalculated {duration(story.batches[0].ago_s)} ago, {_when_changed(story)}")
    if now.paused_at:
        found.append(f"the topic is {paused(now.paused_at, now.paused_reason)}")
    if now.crash_count:
        found.append(f"suspected: {counted(now.crash_count, 'batch', 'batches')} vanished with this key")
    return [f"  {each}" for each in found]


def _cached_text(story: Story) -> str:
    cached = story.cached
    if not cached or not cached.calculated_at:
        return "no cached rows"
    return (
        f"{cached.row_count:,} cached rows, last written {duration(cached.ago_s)} ago, {moment(cached.calculated_at)}"
    )


def _when_changed(story: Story) -> str:
    changed = next((each for each in story.batches if each.changed), None)
    if changed:
        return f"last found changed {duration(changed.ago_s)} ago"
    if story.batches[0].changed is None:
        return "and the procedure does not say what it changed"
    return "and found unchanged by all that are shown"


def _events_text(story: Story) -> str:
    rows = [("PENDING EVENT", "AGE", "REASON")]
    rows += [(str(each.event_id), duration(each.age_s), each.reason or "-") for each in story.events]
    more = story.now.event_count - len(story.events)
    return columns(rows, right=(0, 1)) + (f"\n… and {more:,} more (--limit)" if more > 0 else "")


_BATCH_HEADER = ("RECALCULATED", "AGO", "KIND", "EVENTS", "KEYS", "WAITED", "TOOK", "CHANGED", "BY", "BECAUSE OF")


def _batches_text(story: Story) -> str:
    if not story.batches:
        return "no recalculation in the history"
    return columns([_BATCH_HEADER, *map(_batch_row, story.batches)], right=(1, 3, 4, 5, 6))


def _batch_row(batch: Done) -> tuple[str, ...]:
    return (
        moment(batch.finished_at),
        duration(batch.ago_s),
        batch.kind,
        f"{batch.event_count:,}",
        f"{batch.key_count:,}",
        duration(batch.waited_s),
        duration(batch.recalculate_ms / 1000),
        {True: "yes", False: "no", None: "?"}[batch.changed],
        f"{batch.host}:{batch.pid}" if batch.host else "-",
        ", ".join(batch.reasons) or "-",
    )
