"""What the daemon adds to the procedure: its rate of recalculation against plain psql calling the same procedure."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import asyncpg

from benchmarks.bench import (
    SCHOOL_TABLES,
    Bench,
    asleep,
    drained,
    forget_history,
    load_school,
    settle_down,
)
from benchmarks.figures import Part, Row, Series, Verdict, interleaved
from benchmarks.process import daemon

STUDENTS = 3_000
BATCH_KEYS = 500
CONNECTIONS = (1, 2)
TARGET_RATIO = 0.9
STATES = ("clean", "dirty")

# One piece of feedback a pupil, changed to and fro: then every cached row of the pupil's unit and terms differs.
TOUCH = """
update school.feedback as f
set score = case when f.score = 0.5 then 0.6 else 0.5 end
from (select distinct on (o.student_id) o.student_id, o.assignment_id from school.feedback as o order by 1, 2) as one
where f.student_id = one.student_id and f.assignment_id = one.assignment_id
"""

ENQUEUE = """
insert into outbox.event (topic, key, reason)
select 'reports.student', k.key, 'bench'
from unnest($1::text[]) with ordinality as k (key, position)
order by k.position
returning pg_current_xact_id()::text
"""

FINISHED = """
select max(pg_xact_commit_timestamp(b.xmin)) as finished_at, sum(cardinality(b.keys)) as keys,
       sum(coalesce(cardinality(b.changed_keys), 0)) as changed, avg(b.recalculate_ms)::float8 as recalculate_ms,
       count(*) as batches
from outbox.batch as b
"""


@dataclass(frozen=True)
class Floor:
    """The school, its pupils in the order of all sides, and how to reach it."""

    bench: Bench
    database: str
    connection: asyncpg.Connection
    keys: list[str]

    async def prepare(self, state: str) -> None:
        """Leave the cache true, or one change behind for every pupil; the same for every side."""
        if state == "dirty":
            await self.connection.execute(TOUCH)
        await forget_history(self.connection)
        await settle_down(self.connection, *SCHOOL_TABLES)

    async def with_psql(self, state: str, connections: int) -> float:
        """Return pupils a second: one call an array of 500, each its own transaction, the arrays dealt out."""
        await self.prepare(state)
        arrays = list(chunks(self.keys, BATCH_KEYS))
        scripts = [script(arrays[first::connections]) for first in range(connections)]
        printed = await asyncio.gather(*(self.bench.psql(self.database, script) for script in scripts))
        times = [datetime.fromisoformat(line) for output in printed for line in output.split("\n") if line]
        return len(self.keys) / (max(times) - min(times)).total_seconds()

    async def with_daemon(self, state: str, workers: int, **settings: float) -> float:
        """Return pupils a second: from the commit of one event a pupil to the commit of the last batch."""
        await self.prepare(state)
        async with daemon(self.bench.server.dsn(self.database), {"workers": workers, **settings}):
            await asleep(self.connection)
            async with self.connection.transaction():
                xid = (await self.connection.fetch(ENQUEUE, self.keys))[0][0]
                await self.connection.execute("select outbox.ring('reports.student')")
            await drained(self.connection)
            await asleep(self.connection)
        row = await self.connection.fetchrow(FINISHED)
        assert row is not None
        assert row["keys"] >= len(self.keys), "pupils were left out"
        assert row["changed"] == (len(self.keys) if state == "dirty" else 0), "the sides did not do the same work"
        started_at = await self.connection.fetchval("select pg_xact_commit_timestamp($1::text::xid)", xid)
        return len(self.keys) / float((row["finished_at"] - started_at).total_seconds())


async def measure(bench: Bench) -> Part:
    """Recalculate every pupil: psql and daemon in turns, with one connection and with two, cache true and not."""
    async with bench.database() as database, bench.connection(database) as connection:
        await load_school(connection, bench.scaled(STUDENTS, least=BATCH_KEYS))
        keys = [
            row[0] for row in await connection.fetch("select s.student_id::text from school.student as s order by 1")
        ]
        random.Random(1).shuffle(keys)
        measured = await interleaved("floor", bench.rounds, _sides(Floor(bench, database, connection, keys)))
    speeds = {name: Series.of("pupils/s", values) for name, values in measured.items()}
    ratios = {
        f"{state}, {count} worker(s)": speeds[f"{state}, daemon, {count}"].over(speeds[f"{state}, psql, {count}"])
        for state in STATES
        for count in CONNECTIONS
    }
    as_shipped = speeds["dirty, daemon as shipped, 2"].over(speeds["dirty, psql, 2"])
    return Part(
        name="floor",
        question=f"How near is the daemon to psql calling the procedure for {len(keys):,} pupils, {BATCH_KEYS} a call?",
        how="Clean: nothing to write; dirty: one score a pupil changed. As shipped, the daemon also sizes its batches.",
        rows=[Row(name, {"speed": series}) for name, series in speeds.items()]
        + [Row("dirty, daemon as shipped / psql", {"ratio": as_shipped})],
        verdicts=[Verdict(f"{name}: daemon / psql", ratio, ">=", TARGET_RATIO) for name, ratio in ratios.items()],
    )


def _sides(floor: Floor) -> dict[str, Callable[[], Awaitable[float]]]:
    sides: dict[str, Callable[[], Awaitable[float]]] = {}
    for state in STATES:
        for count in CONNECTIONS:
            sides[f"{state}, psql, {count}"] = partial(floor.with_psql, state, count)
            # A target no batch reaches: then the daemon's arrays are psql's.
            sides[f"{state}, daemon, {count}"] = partial(floor.with_daemon, state, count, batch_target_s=20)
    sides["dirty, daemon as shipped, 2"] = partial(floor.with_daemon, "dirty", 2)
    return sides


def script(arrays: Sequence[Sequence[str]]) -> str:
    """Return what psql runs: a call an array, and the time before and after; what a session does once goes before."""
    calls = (f"call reports.recalculate_students('{{{','.join(array)}}}', null) \\g /dev/null" for array in arrays)
    once = "call reports.recalculate_students('{}', null) \\g /dev/null"
    return "\n".join([once, "select clock_timestamp();", *calls, "select clock_timestamp();"])


def chunks(keys: Sequence[str], size: int) -> list[Sequence[str]]:
    """Deal keys out into arrays of a size."""
    return [keys[first : first + size] for first in range(0, len(keys), size)]
