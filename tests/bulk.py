"""A topic of many cheap keys, and what was done to them."""

import asyncpg
from engine import DAEMON_MAY

BULK = "bulk.number"
"""Keys are 000001, 000002, …; each recalculation leaves a row in bulk.done, in the transaction that commits it."""


async def make_bulk(
    db: asyncpg.Connection, count: int, trouble: str = "", *, batch_keys: int = 1000, lists_keys: bool = True
) -> None:
    """Register the topic. trouble is plpgsql that sees p_keys."""
    await db.execute(f"""
        create schema bulk; {DAEMON_MAY.format("bulk")}
        create unlogged table bulk.done (key text not null);
        create function bulk.list_keys(p_after text, p_limit integer) returns setof text language sql stable as $$
            select lpad(i::text, 6, '0')
            from generate_series(
                coalesce(p_after::integer, 0) + 1, least({count}, coalesce(p_after::integer, 0) + p_limit::bigint)
            ) as i
        $$;
        create procedure bulk.recalculate(in p_keys text[], inout p_changed_keys text[] default null)
        language plpgsql as $$
        begin
            perform outbox.lock_keys('{BULK}', p_keys);
            {trouble}
            insert into bulk.done select unnest(p_keys);
            p_changed_keys := p_keys;
        end $$;
        select outbox.set_topic('{BULK}', 'bulk.recalculate', p_batch_keys => {batch_keys},
            p_list_keys => {"'bulk.list_keys'" if lists_keys else "null"});
    """)


def numbers(first: int, last: int) -> list[str]:
    """Return the keys from first to last."""
    return [f"{number:06}" for number in range(first, last + 1)]


async def times_done(db: asyncpg.Connection) -> dict[str, int]:
    """Tell how often each key was recalculated, in commits that count."""
    rows = await db.fetch("select key, count(*) from bulk.done group by key order by key")
    return {row["key"]: row["count"] for row in rows}


async def pretend_daemon(db: asyncpg.Connection) -> None:
    """Enter a daemon that lives, and does nothing."""
    await db.execute("""
        insert into outbox.daemon (daemon_id, host, pid, version, state, backend_pid, backend_started_at)
        values (gen_random_uuid(), 'elsewhere', 1, '1', 'idle', 1, now())
    """)


async def await_event_age(db: asyncpg.Connection, seconds: float) -> None:
    """Make every event older, as if it had waited."""
    await db.execute("update outbox.event set enqueued_at = enqueued_at - make_interval(secs => $1)", seconds)
