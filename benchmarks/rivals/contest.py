"""The ground of a contest: one school in one database, with every contestant's schema; each has its turn."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from benchmarks.bench import SCHOOL_TABLES, Bench, asleep, load_school, settle_down
from benchmarks.rivals.system import RECALCD, RING, System
from daemon.sql import statement

MAKE_PARTITIONS = statement("make_partitions")

SCHEMA = """
create table bench.work (turn integer primary key, assignment_id uuid not null, student_id uuid not null);
create table bench.backlog (position integer primary key, key text not null);
create table bench.touched (student_id uuid primary key);
create table bench.warm_up (position integer primary key, key text not null);
create table bench.dirty (student_id uuid primary key);
create table bench.proved (at timestamptz not null);
insert into bench.proved (at) select clock_timestamp();
"""

# One piece of feedback a pupil, the pupils in no order that any table has.
WORK = """
insert into bench.work (turn, assignment_id, student_id)
select row_number() over (order by md5(w.student_id::text)) - 1, w.assignment_id, w.student_id
from (
    select distinct on (f.student_id) f.student_id, f.assignment_id from school.feedback as f order by 1, 2
) as w
"""

WARM_UP = """
insert into bench.warm_up (position, key)
select w.turn, w.student_id::text from bench.work as w where w.turn between 1 and {jobs}
"""

# The pupils written to since all reports were true, but those whose report is younger by more than a recalculation
# takes: one that had begun to read before the write was committed would look younger too.
SUSPECT = """
select array_agg(w.student_id::text)
from bench.work as w
join school.feedback as f on f.assignment_id = w.assignment_id and f.student_id = w.student_id
where pg_xact_commit_timestamp(f.xmin) > (select max(p.at) from bench.proved as p)
  and not exists (
    select from reports.report_student_rollups as r
    where r.student_id = w.student_id
      and pg_xact_commit_timestamp(r.xmin) > pg_xact_commit_timestamp(f.xmin) + interval '1 s'
)
"""

# Any score but the one that is there, so that the report changes with every write.
WRITE = """
select school.record_feedback(w.assignment_id, w.student_id, case when f.score = 0.5 then 0.6 else 0.5 end, f.comment,
                              f.given_by)
from bench.work as w
join school.feedback as f on f.assignment_id = w.assignment_id and f.student_id = w.student_id
where w.turn = {turn}
"""

ENQUEUE = """
create or replace function outbox.enqueue(p_topic text, p_key text, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = public, pg_catalog, pg_temp
as $body$
declare
    v_row record;
    v_changed_keys text[];
begin
    {body}
end $body$
"""


# What a view has and the table has not, and the reverse.
DIFFERENT = """
with rows as (
    select {columns} from reports.report_student_rollups
), shown as (
    select {columns} from {{report}}
)
(select r.student_id from (table rows except table shown) as r)
union
(select s.student_id from (table shown except table rows) as s)
""".format(
    columns="student_id, timeframe_id, cohort_id, activity_average, assessment_average, average, activity_count,"
    " assessment_count, feedback_count, assignment_count, subjects, latest_assignment_id, latest_score, latest_comment,"
    " latest_given_at"
)


CHUNK = 500
HANDS = 2
"""Connections that prepare a turn, one a core of a small machine."""
WARM_UP_JOBS = 200
WARM_UPS = 2
"""So that every connection of a contestant has compiled and planned what it runs; clean pupils cost little else."""
WARM_UP_WRITES = 1
"""And the doorbell, or what else wakes it."""
REST, MOST_REST_S = 20, 1.0
"""Times a look at what is left, until the next; but a second at most, or the end would be noticed long after it."""


async def rest(looked_at: float, deadline: float, every_s: float) -> None:
    """Wait for the next look: one that takes long, since a table is large, must not take the machine from who works."""
    now = time.monotonic()
    await asyncio.sleep(max(every_s, min(REST * (now - looked_at), MOST_REST_S, deadline - now)))


class TooSlow(Exception):
    """A contestant did not get there in time."""


@dataclass(frozen=True)
class Contest:
    """What a turn needs."""

    bench: Bench
    database: str
    connection: asyncpg.Connection
    shipped_enqueue: str
    students: int
    filled: list[Sequence[str]] = field(default_factory=list)
    """What bench.backlog holds, if anything."""

    @property
    def dsn(self) -> str:
        return self.bench.server.dsn(self.database)

    async def give_turn(self, system: System) -> None:
        """Let the writers enqueue for a contestant, and begin with true reports and no job from earlier."""
        assert RING in self.shipped_enqueue
        shipped = self.shipped_enqueue.replace(RING, system.ring)
        await self.connection.execute(shipped if system.enqueue is None else ENQUEUE.format(body=system.enqueue))
        if system.clear:
            await self.connection.execute(system.clear)
        if system.starts_over:
            await system.install(self.dsn)
        await self._recalculate(await self.connection.fetchval(SUSPECT) or [])
        await self.connection.execute("update bench.proved set at = clock_timestamp()")
        for view in system.views:
            await self.connection.execute(f"refresh materialized view {view}")
            await self.connection.execute(f"analyze {view}")
        await self.connection.execute("truncate bench.dirty")
        await settle_down(self.connection, *SCHOOL_TABLES)

    @asynccontextmanager
    async def working(self, system: System, *, warm_ups: int = WARM_UPS) -> AsyncIterator[None]:
        """Run a contestant's workers; enter when they have shown that they work, and are idle again."""
        async with system.working(self.dsn):
            await self.warm_up(system, warm_ups)
            if system.sleeps_armed:
                await asleep(self.connection)
            yield

    async def warm_up(self, system: System, warm_ups: int = WARM_UPS) -> None:
        """Wait until the workers have shown that they work, each of their connections if possible."""
        for _ in range(warm_ups if system.worker or system.has_daemon else 0):
            await self.connection.execute(system.enqueue_from("bench.warm_up"))
            if system.has_daemon:
                await self.connection.execute("select outbox.ring('reports.student')")
            await self.drained(system, within_s=60)
        await self.write(0)
        await self.drained(system, within_s=60)

    async def fill(self, backlog: Sequence[str]) -> None:
        """Have the backlog in bench.backlog, and its pupils in bench.touched; they may be there since the last turn."""
        if not self.filled or self.filled[0] is not backlog:
            self.filled.clear()
            await self.connection.execute("truncate bench.backlog, bench.touched")
            await self.connection.copy_records_to_table(
                "backlog", schema_name="bench", records=list(enumerate(backlog))
            )
            await self.connection.copy_records_to_table(
                "touched", schema_name="bench", records=[(key,) for key in set(backlog)]
            )
            await self.connection.execute("analyze bench.backlog, bench.touched")
            self.filled.append(backlog)

    async def write(self, turn: int) -> None:
        """Change one pupil's feedback, and say so, as an application does."""
        await self.connection.execute(
            "insert into bench.dirty select w.student_id from bench.work as w where w.turn = $1 on conflict do nothing",
            turn,
        )
        await self.connection.execute(WRITE.format(turn="$1"), turn)

    async def drained(self, system: System, *, within_s: float, every_s: float = 0.05) -> None:
        """Wait until nothing is left. Raises TooSlow."""
        deadline = time.monotonic() + within_s
        while True:
            looked_at = time.monotonic()
            if not await self.connection.fetchval(f"select exists (select {system.left})"):
                return
            if looked_at > deadline:
                raise TooSlow(f"{system.name} has {await self.left(system)} events left after {within_s:g} s")
            await rest(looked_at, deadline, every_s)

    async def left(self, system: System) -> int:
        """Return how much is not worked off."""
        return int(await self.connection.fetchval(f"select count(*) {system.left}"))

    async def stale(self, system: System) -> list[str]:
        """Return the pupils whose report is not what a recalculation produces, now that it produced them all."""
        keys = await self.connection.fetchval("select array_agg(w.student_id::text) from bench.work as w")
        changed = await self._recalculate(keys)
        await self.connection.execute("update bench.proved set at = clock_timestamp()")
        if system.report != RECALCD.report:
            changed = [str(row[0]) for row in await self.connection.fetch(DIFFERENT.format(report=system.report))]
        return list(changed)

    async def _recalculate(self, keys: Sequence[str]) -> list[str]:
        """Recalculate pupils; return those whose report was not true."""
        chunks = iter([keys[first : first + CHUNK] for first in range(0, len(keys), CHUNK)])

        async def hand() -> list[str]:
            changed: list[str] = []
            async with self.bench.connection(self.database) as connection:
                for chunk in chunks:
                    changed += await connection.fetchval("call reports.recalculate_students($1::text[], null)", chunk)
            return changed

        return [key for changed in await asyncio.gather(*(hand() for _ in range(HANDS))) for key in changed]


@asynccontextmanager
async def contest(bench: Bench, systems: Sequence[System], students: int) -> AsyncIterator[Contest]:
    """Make the database, and every contestant's schema in it."""
    async with bench.database() as database, bench.connection(database) as connection:
        await connection.execute(f"alter database {database} set track_functions = 'pl'")
        await load_school(connection, students)
        await connection.fetch(MAKE_PARTITIONS, 1)
        await connection.execute(SCHEMA)
        await connection.execute(WORK)
        await connection.execute(WARM_UP.format(jobs=WARM_UP_JOBS))
        await connection.execute("analyze bench.work, bench.warm_up")
        shipped = await connection.fetchval(
            "select pg_get_functiondef('outbox.enqueue(text, text, text)'::regprocedure)"
        )
        installed = set()
        for system in systems:  # two settings of one rival have one schema
            if (system.setup, system.schema) not in installed:
                installed.add((system.setup, system.schema))
                await system.install(bench.server.dsn(database))
                await connection.execute(system.schema or "select")
        yield Contest(bench, database, connection, shipped, students)
