"""Procrastinate 3.10: asyncio workers that fetch a job at a time, woken by NOTIFY.

By its documentation: jobs deferred by the SQL function that its own client calls; "Launch a worker" (concurrency, for
async jobs; LISTEN on, as shipped); "Delete finished jobs": delete_jobs=always, so that its table stays small.

De-duplication ("Ensure tasks don't accumulate in the queue", queueing_lock): a unique index over waiting jobs only, so
an event that arrives while its pupil's job runs is kept. A conflict raises AlreadyEnqueued, "which you can choose to
ignore": inside the application's transaction that takes a savepoint, here a PL/pgSQL block. Two writers of one pupil
wait for each other. An event found to be covered is lost when that job runs before the writer commits.
"""

from benchmarks.rivals.system import ALL, ALL_DIFFERENT, ONE, System, python

PROCESSES = 2
CONNECTIONS = 8


def enqueue(source: str, queueing_lock: str = "null") -> str:
    """Return the call that a defer makes."""
    return f"""
        procrastinate_defer_jobs_v1(array(
            select row('reports', 'recalculate', 0, null, {queueing_lock},
                       jsonb_build_object('student_id', b.key), null)::procrastinate_job_to_defer_v1
            from {source}
        ))
    """


def _system(name: str, one: str, every: str, *, dedupes: bool) -> System:
    procrastinate = (python("procrastinate"), "--app=with_procrastinate.app", "--log-level=warning")
    return System(
        name=name,
        enqueue=one,
        enqueue_all=f"select cardinality({every})",
        left="from procrastinate_jobs as j where j.status in ('todo', 'doing')",
        clear="truncate procrastinate_jobs, procrastinate_events, procrastinate_periodic_defers",
        setup=((*procrastinate, "schema", "--apply"),),
        worker=(*procrastinate, "worker", "--concurrency={connections}", "--delete-jobs=always", "--queues=reports"),
        processes=PROCESSES,
        connections=CONNECTIONS,
        dedupes=dedupes,
    )


PLAIN = _system("Procrastinate", f"perform {enqueue(ONE)};", enqueue(ALL), dedupes=False)
DEDUPED = _system(
    "Procrastinate, queueing_lock",
    f"begin perform {enqueue(ONE, 'b.key')}; exception when unique_violation then null; end;",
    enqueue(ALL_DIFFERENT, "b.key"),
    dedupes=True,
)
