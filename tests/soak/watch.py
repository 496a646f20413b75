"""The watcher of a soak: looks at one snapshot after the other for a key that is neither pending nor owed, nor true."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg
import oracle
from engine import LEDGER

from daemon.database import DATABASE_ERRORS
from soak.figures import Span, length_outside, union
from soak.stage import FRAGILE, Stage

_BROKEN = f"""
    with drifted (topic, key) as (
        select '{LEDGER}', coalesce(t.account, b.account)
        from (select e.account, sum(e.amount) as amount, count(*) as entry_count from ledger.entry as e group by 1) as t
        full join ledger.balance as b on b.account = t.account
        where (t.amount, t.entry_count) is distinct from (b.amount, b.entry_count)
        union all
        select '{FRAGILE}', s.key
        from fragile.source as s left join fragile.cache as c on c.key = s.key
        where c.value is distinct from s.value
    )
    select d.topic, d.key from drifted as d
    where not exists (select from outbox.event as e where (e.topic, e.key) = (d.topic, d.key))
      and not exists (select from outbox.failure as f where (f.topic, f.key) = (d.topic, d.key))
"""
_EXCUSED = "select key from outbox.event where topic = $1 union select key from outbox.failure where topic = $1"
_INNOCENT = "select topic, key, state, sqlstate, attempts from outbox.failure where attempts > 0 and topic <> $1"
_SIZE = """
    select n_dead_tup as dead, pg_relation_size(relid) / 1024 as kb
    from pg_stat_user_tables where relid = 'outbox.event'::regclass
"""
_WAITS = f"""
    select b.topic, extract(epoch from b.oldest_event_at)::float8 as since,
           extract(epoch from pg_xact_commit_timestamp(b.xmin))::float8 as until
    from outbox.batch as b
    where b.kind = 'live' and b.oldest_event_at is not null and b.topic <> '{FRAGILE}'
"""
SCHOOL_EVERY = 5
"""Looks. The school's oracle is thorough, and slow."""


@dataclass
class Watcher:
    """Looks every second, from a session past the proxy."""

    stage: Stage
    look_count: int = 0
    charged: set[tuple[str, str]] = field(default_factory=set)
    """Keys that were charged an attempt, though nobody poisoned them: whose backend was ended thrice, say."""
    dead_tuples: list[tuple[float, int, int]] = field(default_factory=list)
    """When, how many in outbox.event, and its size in kB."""

    async def run(self) -> None:
        """Look for ever; a server that is away is the faults' doing."""
        while True:
            try:
                async with self.stage.session("soak watcher") as db:
                    while True:
                        await self.look(db, thoroughly=self.look_count % SCHOOL_EVERY == 0)
                        await asyncio.sleep(1)
            except DATABASE_ERRORS:
                await asyncio.sleep(0.5)

    async def look(self, db: asyncpg.Connection, *, thoroughly: bool) -> None:
        """Check the promise in one snapshot, and note the size of the outbox."""
        async with db.transaction(isolation="repeatable_read", readonly=True):
            broken = [(row["topic"], row["key"]) for row in await db.fetch(_BROKEN)]
            if thoroughly:
                broken += await _broken_reports(db)
            innocent = await db.fetch(_INNOCENT, FRAGILE)
        for topic, key in broken:
            self.stage.problem(f"the promise is broken: {topic} {key} is neither true nor pending nor owed")
        for row in innocent:
            if (row["topic"], row["key"]) not in self.charged and row["state"] == "dead":
                self.stage.problem(f"an innocent key is dead: {dict(row)}")
            self.charged.add((row["topic"], row["key"]))
        size = await db.fetchrow(_SIZE)
        if size:
            self.dead_tuples.append((self.stage.now, size["dead"], size["kb"]))
        self.look_count += 1


async def _broken_reports(db: asyncpg.Connection) -> list[tuple[str, str]]:
    expected, found = await oracle.truth(db), await oracle.cached(db)
    excused = {row["key"] for row in await db.fetch(_EXCUSED, "reports.student")}
    wrong = {
        str(key[0])
        for table in (oracle.PUPILS, oracle.UNITS)
        for key in expected[table].keys() | found[table].keys()
        if expected[table].get(key) != found[table].get(key)
    }
    return [("reports.student", key) for key in sorted(wrong - excused)]


@dataclass(frozen=True)
class Freshness:
    """How long the oldest event of a batch waited, until the batch had committed; in seconds."""

    batch_count: int
    p50_s: float
    worst_s: float
    worst_outside_s: float
    """Not counting what lies in fault windows."""
    outside_share: float
    """Of the soak, that lies outside of fault windows."""


async def freshness(db: asyncpg.Connection, stage: Stage, seconds: float) -> Freshness:
    """Ask the history and the commit times."""
    windows = union(stage.windows)
    rows = await db.fetch(_WAITS)
    waits: Sequence[Span] = [(row["since"] - stage.epoch, row["until"] - stage.epoch) for row in rows]
    lengths = sorted(until - since for since, until in waits)
    return Freshness(
        batch_count=len(waits),
        p50_s=lengths[len(lengths) // 2] if lengths else 0.0,
        worst_s=max(lengths, default=0.0),
        worst_outside_s=max((length_outside(wait, windows) for wait in waits if wait[0] > 0), default=0.0),
        outside_share=length_outside((0.0, seconds), [(s, min(u, seconds)) for s, u in windows if s < seconds])
        / seconds,
    )
