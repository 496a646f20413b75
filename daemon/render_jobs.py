"""How jobs look on a terminal. Pure."""

from collections.abc import Sequence
from datetime import datetime

from daemon.jobs import Job
from daemon.render import columns, duration

_HEADER = ("JOB", "KIND", "TOPIC", "STATE", "DONE", "OF", "", "KEYS/S", "LEFT", "CREATED")


def jobs_text(jobs: Sequence[Job]) -> str:
    """Return what `recalcd job list` prints."""
    return columns([_HEADER, *map(_row, jobs)], right=(0, 4, 5, 6, 7, 8)) if jobs else "no jobs"


def _row(job: Job) -> tuple[str, ...]:
    return (
        str(job.job_id),
        job.kind,
        job.topic,
        job.status,
        f"{job.done_count:,}",
        f"{job.key_count:,}",
        _percent(job),
        _speed(job),
        duration(job.left_s),
        _time(job.created_at),
    )


def job_text(job: Job) -> str:
    """Return what `recalcd job show` prints; the first line says it in words."""
    facts = [
        ("topic", job.topic),
        ("keys", _keys(job)),
        ("done", f"{job.done_count:,} of {job.key_count:,} ({_percent(job)})"),
        ("changed", f"{job.changed_count:,}"),
        ("left to the daemon", f"{job.skipped_count:,}"),
        ("failed", f"{job.failed_count:,}"),
        ("speed", f"{_speed(job)} keys/s, {job.chunk_keys:,} at a time" + _limit(job)),
        ("time left", duration(job.left_s)),
        ("created", _time(job.created_at)),
        ("last chunk", _time(job.advanced_at)),
        ("ended", _time(job.ended_at)),
    ]
    lines = [f"Job {job.job_id}, a {job.kind}, is {job.status}.", columns(facts)]
    if job.error:
        lines.append(f"It was given up: {job.error}")
    if job.status in ("interrupted", "paused"):
        lines.append(f"Go on with: recalcd job resume {job.job_id}")
    return "\n".join(lines)


def outcome_text(job: Job) -> str:
    """Return what a job prints when it has ended."""
    head = f"job {job.job_id} {job.state}: "
    if job.kind == "replay":
        return f"{head}put back {job.done_count:,} of {job.key_count:,} keys of {job.topic}"
    done_count = job.done_count - job.skipped_count - job.failed_count
    lines = [f"{head}recalculated {done_count:,} keys of {job.topic}: {job.changed_count:,} changed"]
    if job.skipped_count:
        lines.append(f"left {job.skipped_count:,} to the daemon: an event waits for them, or a retry is due")
    if job.failed_count:
        lines.append(f"{job.failed_count:,} failed: see `recalcd failures list {job.topic}`")
    return "\n".join(lines)


def plan_text(verb: str, topic: str, key_count: int, seconds: float | None) -> str:
    """Say how many keys it is about, and how long it takes."""
    told = "the history does not tell how long that takes"
    takes = told if seconds is None else f"recalculating them takes about {duration(seconds)}"
    return f"{verb} {key_count:,} keys of {topic}; {takes}"


def _keys(job: Job) -> str:
    if job.is_named:
        return "named ones"
    cohort = f"of cohort {job.part['cohort']}" if "cohort" in job.part else ""
    missing = "without a cached row" if job.part.get("missing") else ""
    return " ".join(filter(None, [cohort, missing])) or "all"


def _percent(job: Job) -> str:
    return f"{min(100, 100 * job.done_count // job.key_count)} %" if job.key_count else "-"


def _speed(job: Job) -> str:
    return "-" if job.keys_per_s is None else f"{job.keys_per_s:,.0f}"


def _limit(job: Job) -> str:
    return "" if job.rate_limit is None else f", at most {job.rate_limit:,g} keys/s"


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
