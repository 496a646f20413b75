"""PgQueuer 1.6: asyncio workers, SKIP LOCKED, a NOTIFY for every statement that touches the queue.

By its documentation, "Performance Tuning": `pgq autovac` after the installation; a larger batch_size for short jobs,
max_concurrent_tasks at least twice that (ten times, so that no fetch waits for the slowest job); one direct connection
for the queue, a pool for the work; durability `balanced`, which un-logs its log and statistics only: a crash loses no
event, and it is faster. "Programmatic run" for the worker, since `pgq run` of this version fails with the typer of
today; on uvloop, as that does. So that it comes back soon when the server does: a heartbeat_timeout of 5 s,
shutdown_on_listener_failure, and restart_on_failure after 0.1 s instead of 5. The log is what `pgq` keeps by default.

De-duplication ("Reliability", dedupe_key): a unique index over queued *and* picked jobs. `on_conflict="skip"`, for
the default raises in the application's transaction. An event that arrives while its pupil's job runs is dropped.
"""

from benchmarks.rivals.system import ALL, ALL_DIFFERENT, ONE, System, python

PROCESSES = 2
CONNECTIONS = 8
BATCH_SIZE = 50

SKIP = """
on conflict (dedupe_key) where status = any (array['queued', 'picked']::pgqueuer_status[]) and dedupe_key is not null
do nothing
"""


def enqueue(source: str, dedupe_key: str = "null", on_conflict: str = "") -> str:
    """Return the statement that Queries.enqueue sends: the job, and its first line in the log."""
    return f"""
        with added as (
            insert into pgqueuer (priority, entrypoint, payload, execute_after, dedupe_key, status)
            select 0, 'recalculate', convert_to(b.key, 'utf8'), now(), {dedupe_key}, 'queued'
            from {source}
            {on_conflict}
            returning id, entrypoint, priority
        )
        insert into pgqueuer_log (job_id, status, entrypoint, priority)
        select a.id, 'queued', a.entrypoint, a.priority from added as a
    """


def _system(name: str, one: str, every: str, *, dedupes: bool) -> System:
    pgq = python("pgq")
    return System(
        name=name,
        enqueue=f"{one};",
        enqueue_all=every,
        left="from pgqueuer as j where j.status in ('queued', 'picked')",
        clear="truncate pgqueuer, pgqueuer_log, pgqueuer_statistics",
        setup=((pgq, "install"), (pgq, "autovac"), (pgq, "durability", "balanced")),
        worker=(python("python"), "with_pgqueuer.py"),
        processes=PROCESSES,
        connections=CONNECTIONS,
        environment={"BATCH_SIZE": str(BATCH_SIZE)},
        dedupes=dedupes,
    )


PLAIN = _system("PgQueuer", enqueue(ONE), enqueue(ALL), dedupes=False)
DEDUPED = _system(
    "PgQueuer, dedupe_key", enqueue(ONE, "b.key", SKIP), enqueue(ALL_DIFFERENT, "b.key", SKIP), dedupes=True
)
