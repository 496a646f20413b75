"""Chancy 0.26: asyncio workers with executors; completions are written once a second.

By its documentation: "Queues": the AsyncExecutor, meant for many I/O-bound jobs, in place of the default of a process
a job; eager_polling, which fetches again as soon as a job ends; a concurrency above the number of connections, so that
a fetch always brings a handful; all default plugins, its pruner of finished jobs among them. The statement is that of
push_many_ex, which its "Transactions" page has applications call with their own cursor, and its NOTIFY; ids grow with
time, as those of its client do.

De-duplication ("Make Jobs", Unique Jobs): "only one job with the same unique_key is queued or running at a time", so an
event that arrives while its pupil's job runs, or up to a second after, is dropped. The conflict locks the waiting job.
"""

from benchmarks.rivals.system import ALL, ALL_DIFFERENT, ONE, System, python

CONNECTIONS = 16

QUEUE = """
insert into chancy_queues (name, concurrency, tags, executor, executor_options, polling_interval, eager_polling)
values ('reports', 100, '{.*}', 'chancy.executors.asyncex.AsyncExecutor', '{}', 1, true)
on conflict (name) do nothing
"""

# Its chancy_uuid(): 56 bits of tenths of microseconds, the version, and what is random.
ID = """
('0' || lpad(to_hex((extract(epoch from clock_timestamp()) * 10000000)::bigint), 14, '0') || '7'
     || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid
"""


def enqueue(source: str, unique_key: str = "null") -> str:
    """Return the statement that a push sends."""
    return f"""
        insert into chancy_jobs (
            id, queue, func, kwargs, limits, meta, priority, max_attempts, scheduled_at, unique_key
        )
        select {ID}, 'reports', 'with_chancy.recalculate', json_build_object('student_id', b.key),
               '[]', '{{}}', 0, 1, now(), {unique_key}
        from {source}
        on conflict (unique_key) where unique_key is not null and state not in ('succeeded', 'failed')
        do update set state = chancy_jobs.state
    """


WAKE = """pg_notify('chancy_events', '{"t": "queue.pushed", "q": "reports"}')"""


def _system(name: str, one: str, every: str, *, dedupes: bool) -> System:
    chancy = (python("chancy"), "--app", "with_chancy.chancy")
    return System(
        name=name,
        enqueue=f"{one}; perform {WAKE};",
        enqueue_all=f"with pushed as ({every} returning id) select {WAKE} from (select count(*) from pushed) as p",
        left="from chancy_jobs as j where j.state not in ('succeeded', 'failed')",
        clear="truncate chancy_jobs",
        setup=((*chancy, "misc", "migrate"),),
        schema=QUEUE,
        worker=(*chancy, "worker", "start"),
        connections=CONNECTIONS,
        dedupes=dedupes,
    )


PLAIN = _system("Chancy", enqueue(ONE), enqueue(ALL), dedupes=False)
DEDUPED = _system("Chancy, unique_key", enqueue(ONE, "b.key"), enqueue(ALL_DIFFERENT, "b.key"), dedupes=True)
