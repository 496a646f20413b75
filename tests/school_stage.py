"""A school on the stage: what its writers, its workers and its operator do, and what may go wrong for them."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from engine import failures, make_due, pending
from histories import ARGUMENTS, write
from oracle import drift
from school import CLOSE, NOBODY, School, found
from stage import Actor, Stage, Stands
from tenacity import wait_none

import daemon.backfill
import daemon.worker
from daemon.backfill import Backfiller
from daemon.batch import TIDY_SESSION, CallFailed, Recalculation
from daemon.database import sqlstate_of, transaction
from daemon.doorbell import Activity, Alarm
from daemon.hints import SWEEP_S, TRAIL_S, Hints
from daemon.job_runner import Chunk, Counts
from daemon.keys import Topic
from daemon.one_statement import OneStatement
from daemon.replay import Replayer
from daemon.session import Session
from daemon.settings import Settings
from daemon.sql import SQL_ROOT
from daemon.verify import Verifier
from daemon.worker import Shared, Worker, _will_pass

TOPIC = Topic("reports.student", batch_keys=2, lists_keys=True)
TROUBLES = ["22012", "57014", "40001", "53200", "RC004"]
"""What the recalculation of a poisoned key raises: one for every way in which the daemon takes it."""
CONTENTION = {"40001", "40P01", "55P03"}
WRITES = [
    *ARGUMENTS,
    *["record_feedback"] * 12,
    *["set_assignment", "join_group", "leave_group", "edit_assignment"] * 2,
]
_ROUNDS = 100

_SCHEMA = """
create sequence stage.ids;
create function stage.next_id() returns uuid language sql as $$
    select lpad(nextval('stage.ids')::text, 32, '0')::uuid
$$;
alter table school.cohort alter cohort_id set default stage.next_id();
alter table school.student alter student_id set default stage.next_id();
alter table school.class_group alter group_id set default stage.next_id();
alter table school.timeframe alter timeframe_id set default stage.next_id();
alter table school.unit alter unit_id set default stage.next_id();
alter table school.assignment alter assignment_id set default stage.next_id();

create table stage.poison (key text primary key, sqlstate text not null);
create procedure stage.raise_trouble(p_keys text[]) language plpgsql as $$
declare
    v_sqlstate text := (select min(p.sqlstate) from stage.poison as p where p.key = any (p_keys));
begin
    if v_sqlstate is not null then
        raise exception 'poisoned' using errcode = v_sqlstate;
    end if;
end $$;

-- Stable, so that the gate lies between the snapshot of the statement that recalculates and what it writes.
create function stage.standings(p_student_ids uuid[]) returns setof record stable language plpgsql as $$
begin
    perform stage.stop();
    return query select s.* from reports.standings(p_student_ids) as s;
end $$;
"""
_SHAPE = """
    student_id uuid, timeframe_id uuid, subject text, unit_id uuid, unit_count integer, assignment_count integer,
    feedback_count integer, feedback_points integer, assessment_count integer, assessment_points integer,
    working_level integer, latest_given_at timestamptz
"""
_LOCK = "perform outbox.lock_keys('reports.student', p_keys);"

_RESET = f"""
truncate stage.poison, outbox.event, outbox.failure, outbox.suspect, outbox.drift, outbox.batch;
{CLOSE}
select setval('stage.ids', 1, false);
select outbox.set_topic('reports.student', 'stage.recalculate', p_max_attempts => 2, p_batch_keys => 2,
    p_retry_base_s => 86400, p_retry_max_s => 86400, p_statement_timeout_s => 3600);
select outbox.resume_topic('reports.student');
"""


def _procedure(name: str, *changes: tuple[str, str]) -> str:
    """Return the shipped recalculation under another name, with a gate between its snapshot and its writing."""
    text = (SQL_ROOT / "routines/reports/reports.recalculate_students.sql").read_text("utf-8")
    text = text[: text.index("comment on procedure")]
    gate = ("from reports.standings(v_student_ids) as s", f"from stage.standings(v_student_ids) as s ({_SHAPE})")
    for was, becomes in (("procedure reports.recalculate_students(", f"procedure stage.{name}("), gate, *changes):
        assert text.count(was) == 1, f"the recalculation no longer holds {was}"
        text = text.replace(was, becomes)
    return text


@dataclass
class Clock:
    """The daemon's clock; time passes only when told to."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@contextmanager
def clock_stopped() -> Iterator[Clock]:
    """Let workers live by a clock that stands still, and a backfill not wait between its tries."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(daemon.worker, "time", SimpleNamespace(monotonic=clock.monotonic))
        patched.setattr(daemon.backfill, "wait_random_exponential", lambda **_: wait_none())
        yield clock


@dataclass
class SchoolStage:
    """Two writers, three workers of two daemons, and an operator; the witness sees what is committed.

    Two of the workers run a batch in one statement, with a stop inside; one step by step.
    """

    stage: Stage
    witness: asyncpg.Connection
    clock: Clock
    settings: Settings
    workers: dict[Actor, Worker] = field(default_factory=dict)
    poisoned: set[str] = field(default_factory=set)
    """Keys whose recalculation failed by their own fault at some time."""
    seen: str | None = None
    """The snapshot that was checked last."""
    is_anything_to_do: bool = False
    """Whether an event waited in it, or a recalculation was owed."""

    async def build(self) -> None:
        """Make what all examples share. The topic's procedure locks no keys: nobody can force one to."""
        await self.witness.execute(_SCHEMA)
        raising = "call stage.raise_trouble(p_keys);"
        await self.witness.execute(_procedure("recalculate", (_LOCK, raising)))
        await self.witness.execute(_procedure("recalculate_alone", (_LOCK, _LOCK + raising)))
        await self.witness.execute("select outbox.make_partitions(2)")

    async def reset(self) -> None:
        """Found the school anew."""
        await self.stage.clear()
        await self.witness.execute(_RESET)
        school = await found(School(self.witness).db)
        for kind in ("activity", "assessment"):
            await school.assign(kind=kind)
        await school.settle()
        self.clock.now, self.seen, self.is_anything_to_do = 0.0, None, False
        self.poisoned.clear()
        shared = [
            Shared(self.settings, uuid4(), Alarm(), Activity(0), Hints(self.settings.batch_target_s), asyncio.Event())
            for _ in range(2)
        ]
        self.workers = {}
        for number, actor in enumerate(self._named("worker")):
            worker = self.workers[actor] = Worker(shared[number % 2])
            worker._session = _session(actor)
            if number < 2:
                actor.stepped.passing += (TIDY_SESSION, "set statement_timeout")
                worker._at_once = OneStatement(worker._recalculation, actor.stepped)

    def _named(self, name: str) -> list[Actor]:
        return [actor for actor in self.stage.actors if actor.name.startswith(name)]

    @property
    def writers(self) -> list[Actor]:
        """Those who do not wait for another's lock."""
        return [actor for actor in self._named("writer") if actor.stands is Stands.IDLE]

    @property
    def has_open_transactions(self) -> bool:
        return any(writer.connection.is_in_transaction() for writer in self.writers)

    @property
    def idle_workers(self) -> list[Actor]:
        return [actor for actor in self.workers if actor.stands is Stands.IDLE]

    @property
    def busy(self) -> list[Actor]:
        """Workers and operator who stand in the middle of something, and can go on."""
        return [actor for actor in self.stage.actors if actor.can_move]

    @property
    def operator(self) -> Actor:
        return self._named("operator")[0]

    async def key(self, number: int) -> str:
        """Return one of the pupils that are there, or whose report is; nobody's when there is none."""
        query = """
            select s.student_id::text from school.student as s
            union select r.student_id::text from reports.report_student_rollups as r order by 1
        """
        keys = [row[0] for row in await self.witness.fetch(query)]
        return keys[number % len(keys)] if keys else str(NOBODY)

    # What the actors do.

    async def write(self, writer: Actor, name: str, tape: int) -> None:
        """Call a write function, in a transaction that stays open. A refused one leaves nothing behind."""
        if not writer.connection.is_in_transaction():
            await writer.connection.transaction().start()
        others_wait = len(self.writers) < len(self._named("writer"))
        await self.stage.start(writer, _write(writer.connection, name, tape))
        if others_wait and writer.stands is Stands.BEHIND_A_LOCK:  # they must not wait for each other
            await self.stage.cancel(writer)

    async def end(self, writer: Actor, how: str) -> None:
        """Commit or roll back what a writer has written."""
        connection: Any = writer.connection
        transaction = connection._top_xact
        if transaction is not None:
            await self.stage.start(writer, getattr(transaction, how)())

    async def turn(self, worker: Actor) -> None:
        """Let a worker begin a turn, up to its claim."""
        await self.stage.start(worker, _turn(self.workers[worker]))

    async def go_on(self, actor: Actor, count: int) -> None:
        """Let an actor go on, by so many statements if nobody stops it; see after each that nothing is lost."""
        for _ in range(count):
            if actor.can_move:
                await self.stage.move(actor)
                await self.check()

    async def operate(self, what: str, first: int, count: int) -> None:
        """Let the operator begin something with so many pupils, up to its first statement."""
        keys = sorted({await self.key(number) for number in range(first, first + count)})
        waiting = frozenset(await pending(self.witness)) & frozenset(keys)
        await self.stage.start(self.operator, _bear(OPERATIONS[what](self.operator.stepped, keys, waiting)))

    # What happens to them.

    async def poison(self, number: int, sqlstate: str) -> None:
        """Let the recalculation of a key fail from now on."""
        key = await self.key(number)
        await self.witness.execute("insert into stage.poison values ($1, $2) on conflict do nothing", key, sqlstate)
        if sqlstate not in CONTENTION:
            self.poisoned.add(key)

    async def mend(self) -> None:
        """Let every recalculation succeed from now on."""
        await self.witness.execute("delete from stage.poison")

    async def make_due(self) -> None:
        """Let the backoff of all failures be over that nobody is at work on."""
        await self.witness.execute("""
            update outbox.failure as f set next_attempt_at = clock_timestamp() - interval '1 second'
            where f.ctid = any (array(select d.ctid from outbox.failure as d for update skip locked))
        """)

    async def pass_time(self, seconds: float) -> None:
        """Let the daemons' clocks go on."""
        self.clock.now += seconds

    async def pause(self) -> None:
        await self.witness.execute("select outbox.pause_topic('reports.student')")

    async def resume(self) -> None:
        await self.witness.execute("select outbox.resume_topic('reports.student')")

    # What must be true.

    async def check(self) -> None:
        """See, in one snapshot, that whatever is not reflected waits or is owed, and that no innocent is charged."""
        seen, self.seen = self.seen, await self.witness.fetchval("select pg_current_snapshot()::text")
        if seen == self.seen:  # nothing was committed since
            return
        async with self.witness.transaction(isolation="repeatable_read", readonly=True):
            wrong = await drift(self.witness)
            waiting, owed = await pending(self.witness), await failures(self.witness)
        excused = {*waiting, *owed}
        self.is_anything_to_do = bool(excused)
        lost = [each for each in wrong if not any(key in each for key in excused)]
        assert lost == [], f"waiting: {sorted(set(waiting))}, owed: {sorted(owed)}"
        charged = {key for key, failure in owed.items() if failure["attempts"] > 0}
        assert charged <= self.poisoned, "an innocent key was charged"

    async def finish(self) -> None:
        """End what is under way, mend all trouble, and see that everybody's report is true in the end."""
        await self.mend()
        await self.resume()
        for _ in range(_ROUNDS):
            for writer in self.writers:
                await self.end(writer, "commit")
            for actor in self.busy:
                await self.stage.move(actor)
            if all(actor.stands is Stands.IDLE for actor in self.stage.actors):
                break
        await self._drain()
        assert await pending(self.witness) == []
        assert await failures(self.witness) == {}
        assert await drift(self.witness) == []

    async def _drain(self) -> None:
        """Let one worker do all that is left. The dead are raised by a replay."""
        dead = list(await failures(self.witness))
        await self.witness.execute("select outbox.replay('reports.student', $1)", dead)
        worker = next(iter(self.workers))
        for _ in range(_ROUNDS):
            self.clock.now += 60
            await make_due(self.witness)
            await self.turn(worker)
            await self.go_on(worker, _ROUNDS)
            if not await pending(self.witness) and not await failures(self.witness):
                return


async def _write(connection: asyncpg.Connection, name: str, tape: int) -> None:
    """Draw the arguments from the tape: a number, of which every choice takes a part."""

    def draw(below: int) -> int:
        nonlocal tape
        tape, drawn = divmod(tape, below)
        return drawn

    with suppress(asyncpg.QueryCanceledError, asyncpg.DeadlockDetectedError):
        await write(School(connection), draw, [name])


async def _turn(worker: Worker) -> None:
    """Take a turn; what will pass, is for another turn."""
    try:
        await worker._turn()
    except Exception as error:
        if not _will_pass(error):
            raise


async def _bear(operation: Coroutine[Any, Any, None]) -> None:
    """Let an operation end with the trouble that we made, or with contention; nothing else."""
    try:
        await operation
    except (CallFailed, asyncpg.PostgresError) as error:
        sqlstate = error.sqlstate if isinstance(error, CallFailed) else sqlstate_of(error)
        if sqlstate not in {*TROUBLES, *CONTENTION}:
            raise


async def _note(_: Counts) -> None:
    """Stand in for the job that the operation is part of."""


async def _backfill(connection: Any, keys: list[str], waiting: frozenset[str]) -> None:
    await Backfiller(connection, TOPIC).do(Chunk(keys, waiting), _note)


async def _replay(connection: Any, keys: list[str], waiting: frozenset[str]) -> None:
    await Replayer(connection, TOPIC).do(Chunk(keys, waiting), _note)


async def _verify(connection: Any, keys: list[str], _: frozenset[str]) -> None:
    verifier = Verifier(connection, TOPIC, repair=True)
    await verifier.check(keys)
    assert verifier.verdict.drifted == []


async def _repair(connection: Any, keys: list[str], _: frozenset[str]) -> None:
    await Recalculation(None, "repair", keep_history=True).named_keys(connection, TOPIC.name, keys)


async def _call(connection: Any, keys: list[str], _: frozenset[str]) -> None:
    async with transaction(connection):
        await connection.execute("call stage.recalculate_alone($1)", keys)


async def _hydrate(connection: Any, _keys: list[str], _: frozenset[str]) -> None:
    await connection.execute("call reports.backfill_student_rollups(2)")


OPERATIONS: dict[str, Callable[[Any, list[str], frozenset[str]], Coroutine[Any, Any, None]]] = {
    "backfill": _backfill,
    "replay": _replay,
    "verify": _verify,
    "repair": _repair,
    "call": _call,
    "hydrate": _hydrate,
}

UPSETS: dict[str, Callable[[SchoolStage, int], Coroutine[Any, Any, None]]] = {
    **{f"poison {sqlstate}": partial(SchoolStage.poison, sqlstate=sqlstate) for sqlstate in TROUBLES},
    "mend": lambda school, _: school.mend(),
    "let failures fall due": lambda school, _: school.make_due(),
    "let the mark follow": lambda school, _: school.pass_time(TRAIL_S),
    "let it be time to sweep": lambda school, _: school.pass_time(2 * SWEEP_S),
    "let it be time for a broken topic": lambda school, _: school.pass_time(school.settings.retry_max_s),
    "pause": lambda school, _: school.pause(),
    "resume": lambda school, _: school.resume(),
}


def _session(actor: Actor) -> Session:
    """Let a worker take an actor's connection for one that it opened itself; nobody watches over it."""
    now = datetime.now(UTC)
    return Session(actor.stepped, actor.name, 0, now, now, frozenset(), is_direct=False)
