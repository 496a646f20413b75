"""pg-boss 12: Node.js, batches, woken by NOTIFY.

By its documentation: "Workers" (batchSize, localConcurrency; burstWhenBatchFull, so that a backlog is fetched without
pause), "Constructor" and "Queues" (useListenNotify and notify; partition, a table of the queue's own, into which send()
inserts by its name); the insert of "Job table", with the columns that send() fills, and its NOTIFY. Completed jobs stay
for a day.

Twice: `each` makes a call a job, as every other rival here; `batch` has the handler of a whole batch make one call for
its pupils, inside the transaction that completes them ("Workers", transactional).

De-duplication ("Queues", policy `short` with singletonKey): a unique index over waiting jobs only, and ON CONFLICT DO
NOTHING. An event that arrives while its pupil's job runs is kept; one found to be covered is lost when that job runs
before the writer commits. (The policies `exclusive` and `stately` drop more.)
"""

import hashlib

from benchmarks.rivals.system import ALL, ALL_DIFFERENT, ONE, System, node

CONNECTIONS = 10
SETUP = (node(), "with_pg_boss.mjs", "setup")


def table(queue: str) -> str:
    """Return the name that pg-boss gives to a queue's own table."""
    return f"pgboss.j{hashlib.sha224(queue.encode()).hexdigest()}"


def enqueue(source: str, queue: str, singleton_key: str = "null") -> str:
    """Return the statement that send() sends."""
    return f"""
        with added as (
            insert into {table(queue)} (
                name, data, singleton_key, policy, retry_limit, retry_delay, retry_backoff, expire_seconds,
                deletion_seconds, keep_until
            )
            select q.name, jsonb_build_object('student_id', b.key), {singleton_key}, q.policy, q.retry_limit,
                   q.retry_delay, q.retry_backoff, q.expire_seconds, q.deletion_seconds,
                   now() + q.retention_seconds * interval '1 s'
            from {source}
            join pgboss.queue as q on q.name = '{queue}'
            on conflict do nothing
            returning name
        )
        select pg_notify('pgboss_' || left(encode(sha224('pgboss'), 'hex'), 24), a.name)
        from (select distinct added.name from added) as a
    """


def _system(name: str, handler: str, queue: str, singleton_key: str = "null", *, dedupes: bool = False) -> System:
    return System(
        name=name,
        # Discards what it selects, as `perform` would, which takes no statement that begins with `with`.
        enqueue=f"for v_row in {enqueue(ONE, queue, singleton_key)} loop end loop;",
        enqueue_all=enqueue(ALL_DIFFERENT if dedupes else ALL, queue, singleton_key),
        left=f"from {table(queue)} as j where j.name = '{queue}' and j.state not in ('completed', 'cancelled')",
        clear="truncate pgboss.job",
        setup=(SETUP,),
        worker=(node(), "with_pg_boss.mjs", handler),
        connections=CONNECTIONS,
        environment={"QUEUE": queue},
        calls_each=handler == "each",
        dedupes=dedupes,
    )


PLAIN = _system("pg-boss", "each", "reports")
BATCH = _system("pg-boss, batch handler", "batch", "reports")
DEDUPED = _system("pg-boss, singletonKey", "each", "reports_short", "b.key", dedupes=True)
DEDUPED_BATCH = _system("pg-boss, singletonKey, batch handler", "batch", "reports_short", "b.key", dedupes=True)
