"""What the engine's tests share: a ledger whose balances are cached, topics that misbehave, and daemons in process."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr
from servers import as_daemon
from waiting import eventually

from daemon.batch import Batch, Recalculation
from daemon.metrics import Metrics
from daemon.one_statement import OneStatement
from daemon.runner import Crew, Ending
from daemon.settings import Settings
from daemon.sql import SQL_ROOT

LEDGER = "ledger.account"
"""The topic whose keys are accounts. Its procedure reads, stops at a gate if told to, then writes."""

GATE = 4711
"""Advisory lock at which a session waits that has `set ledger.gate = on`; `dawdle` lets it lose a few milliseconds."""

LEDGER_LOCK = "perform outbox.lock_keys('ledger.account', p_keys);"
LEDGER_READ = "from ledger.entry as e where e.account = any (p_keys) group by e.account"
"""Pieces of the ledger's procedure, for tests that leave one out."""

DAEMON_MAY = """
alter default privileges in schema {0} grant select, insert, update, delete on tables to recalcd_daemon;
alter default privileges in schema {0} grant usage on sequences to recalcd_daemon;
grant usage on schema {0} to recalcd_daemon;
"""
"""Lets the daemon do in a schema that is empty yet what a procedure needs that runs with its caller's rights."""

_LEDGER_SQL = (
    f"create schema ledger; {DAEMON_MAY.format('ledger')}"
    """
create sequence ledger.call_count;
create table ledger.entry (
    entry_id bigint generated always as identity primary key, account text not null, amount bigint not null
);
create index on ledger.entry (account);
create table ledger.balance (account text primary key, amount bigint not null, entry_count bigint not null);
create table ledger.done (topic text not null, key text not null, call bigint not null);

create function ledger.record(p_account text, p_amount bigint) returns void language sql as $$
    insert into ledger.entry (account, amount) values (p_account, p_amount);
    select outbox.enqueue('ledger.account', p_account, 'entry.recorded');
$$;

create function ledger.stop_at_gate() returns void language plpgsql as $$
begin
    case current_setting('ledger.gate', true)
        when 'on' then perform pg_advisory_xact_lock_shared(4711);
        when 'dawdle' then perform pg_sleep(random() ^ 6 / 5);
        else null;
    end case;
end $$;

create procedure ledger.recalculate(in p_keys text[], inout p_changed_keys text[] default null) language plpgsql as $$
declare
    v_truth jsonb;
begin
    perform outbox.lock_keys('ledger.account', p_keys);
    v_truth := (
        select jsonb_agg(jsonb_build_object('account', t.account, 'amount', t.amount, 'entry_count', t.entry_count))
        from (
            select e.account, sum(e.amount) as amount, count(*) as entry_count
            from ledger.entry as e where e.account = any (p_keys) group by e.account
        ) as t
    );
    perform ledger.stop_at_gate();
    with truth as (
        select t.account, t.amount, t.entry_count
        from jsonb_to_recordset(v_truth) as t (account text, amount bigint, entry_count bigint)
    ), written as (
        insert into ledger.balance as b (account, amount, entry_count)
        select t.account, t.amount, t.entry_count from truth as t
        on conflict (account) do update set amount = excluded.amount, entry_count = excluded.entry_count
        where (b.amount, b.entry_count) is distinct from (excluded.amount, excluded.entry_count)
        returning b.account
    ), removed as (
        delete from ledger.balance as b
        where b.account = any (p_keys) and not exists (select from truth as t where t.account = b.account)
        returning b.account
    )
    select coalesce(array_agg(c.account), '{}') into p_changed_keys
    from (select w.account from written as w union all select r.account from removed as r) as c;
end $$;

select outbox.set_topic('ledger.account', 'ledger.recalculate');
"""
)


async def make_ledger(db: asyncpg.Connection, *changes: tuple[str, str]) -> None:
    """Make the tables, the topic LEDGER and the write function ledger.record; change pieces of the procedure."""
    text = _LEDGER_SQL
    for was, becomes in changes:
        assert text.count(was) == 1
        text = text.replace(was, becomes)
    await db.execute(text)


async def record(db: asyncpg.Connection, account: str, amount: int = 1) -> None:
    """Write an entry and its event, as an application does: in one transaction."""
    await db.execute("select ledger.record($1, $2)", account, amount)


async def drifted(db: asyncpg.Connection) -> list[str]:
    """Return the accounts whose cached balance is not what adding up their entries, here, gives."""
    amounts: defaultdict[str, list[int]] = defaultdict(list)
    for row in await db.fetch("select account, amount from ledger.entry"):
        amounts[row["account"]].append(row["amount"])
    truth = {account: (sum(each), len(each)) for account, each in amounts.items()}
    rows = await db.fetch("select account, amount, entry_count from ledger.balance")
    cached = {row["account"]: (row["amount"], row["entry_count"]) for row in rows}
    return sorted(account for account in truth | cached if truth.get(account) != cached.get(account))


async def make_topic(db: asyncpg.Connection, topic: str, trouble: str = "", **options: int) -> None:
    """Register a topic whose procedure counts its calls, runs `trouble`, and notes in ledger.done what it did.

    trouble is plpgsql; it sees p_keys and may set p_changed_keys.
    """
    await db.execute(f"""
        create or replace procedure ledger.{topic}(in p_keys text[], inout p_changed_keys text[] default null)
        language plpgsql as $$
        declare
            v_call bigint := nextval('ledger.call_count');
        begin
            perform outbox.lock_keys('{topic}', p_keys);
            p_changed_keys := p_keys;
            {trouble}
            insert into ledger.done select '{topic}', k, v_call from unnest(p_keys) as k;
        end $$
    """)
    given = "".join(f", p_{name} => {value}" for name, value in options.items())
    await db.execute(f"select outbox.set_topic('{topic}', 'ledger.{topic}'{given})")


async def enqueue(db: asyncpg.Connection, topic: str, *keys: str) -> None:
    await db.execute("select outbox.enqueue($1, $2::text[])", topic, list(keys))


async def pending(db: asyncpg.Connection, topic: str | None = None) -> list[str]:
    """Return the keys of all events that are visible, oldest first."""
    rows = await db.fetch("select key from outbox.event where topic = coalesce($1, topic) order by event_id", topic)
    return [row["key"] for row in rows]


async def done(db: asyncpg.Connection, topic: str) -> list[str]:
    """Return the keys that make_topic's procedure did, in commits that count; sorted, with repeats."""
    return [row["key"] for row in await db.fetch("select key from ledger.done where topic = $1 order by key", topic)]


async def call_count(db: asyncpg.Connection) -> int:
    """Count the calls of make_topic's procedures, rolled back ones included."""
    row = await db.fetchrow("select last_value, is_called from ledger.call_count")
    assert row is not None
    return int(row["last_value"]) if row["is_called"] else 0


async def audit(db: asyncpg.Connection) -> list[str]:
    """Return the accounts that break the promise in one snapshot: nothing is pending or owed, yet they drift."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        wrong = await drifted(db)
        excused = {*await pending(db, LEDGER), *await failures(db)}
    return [account for account in wrong if account not in excused]


async def failures(db: asyncpg.Connection) -> dict[str, asyncpg.Record]:
    """Return the failure rows by key."""
    return {row["key"]: row for row in await db.fetch("select * from outbox.failure")}


async def make_due(db: asyncpg.Connection) -> None:
    """Let every backoff be over."""
    await db.execute("update outbox.failure set next_attempt_at = clock_timestamp() - interval '1 second'")


async def until_empty(db: asyncpg.Connection, topic: str | None = None) -> None:
    """Wait until no event is visible."""

    async def is_empty() -> bool:
        return not await pending(db, topic)

    await eventually(is_empty, timeout_s=30)


LIVE = Recalculation(None, "live", keep_history=False)


async def next_batch(connection: asyncpg.Connection, how: Recalculation = LIVE) -> Batch | None:
    """Run one batch as a worker does, without what it remembers."""
    return await how.next_batch(connection, {}, after="", retries_first=False)


async def run_at_once(connection: asyncpg.Connection, how: Recalculation = LIVE) -> Batch | None:
    """Run one batch in one statement, as a worker does that has a session of its own."""
    return await OneStatement(how, connection).next_batch({}, after="", retries_first=False)


async def drain(connection: asyncpg.Connection, how: Recalculation = LIVE) -> list[Batch]:
    """Run batches until there is nothing to take."""
    batches = []
    while batch := await next_batch(connection, how):
        batches.append(batch)
    return batches


async def vanish(db: asyncpg.Connection) -> None:
    """Pretend that a daemon vanished just now: the next one goes step by step, and writes down whom it will call."""
    await db.execute("""
        insert into outbox.daemon (daemon_id, host, pid, version, state, ended_at, backend_pid, backend_started_at)
        values (gen_random_uuid(), 'elsewhere', 1, '1', 'vanished', now(), 1, now())
    """)


async def mutate(db: asyncpg.Connection, routine: str, was: str, becomes: str) -> None:
    """Replace a piece of a shipped routine in the test's database only. Fails when the file has no such piece."""
    text = (SQL_ROOT / "routines" / "outbox" / f"outbox.{routine}.sql").read_text("utf-8")
    assert text.count(was) == 1, f"outbox.{routine} no longer holds the piece that this test is about"
    await db.execute(text.replace(was, becomes))


def impatient(settings: Settings, **update: Any) -> Settings:
    """Return settings that suit a test: short pauses, but a poll so rare that only a ring can explain a wake-up."""
    short = {
        "linger_s": 0.05,
        "linger_poll_s": 0.005,
        "poll_interval_s": 60.0,
        "poll_only_interval_s": 0.02,
        "retry_max_s": 0.2,
    }
    return settings.model_copy(update=short | update)


@asynccontextmanager
async def on_duty(
    settings: Settings, *, drain: bool = False, as_given: bool = False, metrics: Metrics | None = None
) -> AsyncIterator[Crew]:
    """Run a daemon in this process while the block runs. What ends it early, ends the block.

    It logs in as one that is only a recalcd_daemon; as_given, as the settings say.
    """
    if not as_given:
        assert settings.database_url is not None
        dsn = SecretStr(as_daemon(settings.database_url.get_secret_value()))
        settings = settings.model_copy(update={"database_url": dsn})
    crew = Crew(settings, uuid4(), metrics)
    await crew.prepare()
    serving = asyncio.create_task(crew.serve(drain=drain, hurry=asyncio.Event()))
    try:
        yield crew
    finally:
        crew.go_off_duty(Ending.STOPPED)
        await serving


async def asleep(db: asyncpg.Connection, count: int = 1) -> None:
    """Wait until a daemon has armed the bell, and `count` of them listen."""

    async def is_armed() -> bool:
        return bool(
            await db.fetchval(
                "select count(*) = 1 from pg_locks as l join pg_database as d on d.oid = l.database "
                "where d.datname = current_database() and l.locktype = 'advisory' and l.classid = 29283 "
                "and l.objid = 1 and l.mode = 'ExclusiveLock'"
            )
            and await sessions(db, "recalcd listener") == count
        )

    await eventually(is_armed)


async def sessions(db: asyncpg.Connection, application_name: str) -> int:
    """Count the sessions of that name in the test's database."""
    query = "select count(*) from pg_stat_activity where datname = current_database() and application_name = $1"
    return int(await db.fetchval(query, application_name))


async def terminate(db: asyncpg.Connection, application_name: str) -> int:
    """End the sessions of that name as an administrator would; return how many there were."""
    query = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where datname = current_database() and application_name = $1"
    )
    return int(await db.fetchval(query, application_name))


def numbered(count: int, start: int = 0) -> list[str]:
    """Return keys that sort as they count: k000, k001 and so on."""
    return [f"k{number:03}" for number in range(start, start + count)]


def events_of(logged: Iterable[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Return the log's events of these names."""
    return [each for each in logged if each["event"] in names]


@contextmanager
def refused(sqlstate: str, *parts: str) -> Iterator[None]:
    """Expect the database to refuse with this SQLSTATE, and message or hint to hold these parts."""
    with pytest.raises(asyncpg.PostgresError) as info:
        yield
    assert info.value.sqlstate == sqlstate, info.value
    text = f"{info.value}\n{getattr(info.value, 'hint', None)}"
    for part in parts:
        assert part in text
