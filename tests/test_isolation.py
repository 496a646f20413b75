"""Each race that the design names, in every order of the statements of those who race.

The code is the shipped code, stopped before every statement, and in the procedure between reading and writing. After
every schedule, what is cached must be true; and each race is run once more with what protects from it left out, when at
least one schedule must be seen to break. Two sessions that race by hand: test_mutations.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from engine import (
    LEDGER,
    LEDGER_LOCK,
    LIVE,
    audit,
    drain,
    failures,
    impatient,
    make_due,
    make_ledger,
    mutate,
    next_batch,
    pending,
    record,
    run_at_once,
)
from schedules import schedules
from stage import Actor, Stage, stage_on

import daemon.doorbell
from daemon.batch import SETTLE, TIDY_SESSION, CallFailed
from daemon.careful import CarefulRun
from daemon.database import transaction
from daemon.doorbell import Activity, Alarm, Doorbell
from daemon.hints import TRAIL_S, Hints
from daemon.settings import Settings

K = "k"

both_ways = pytest.mark.parametrize("mutated", [False, True], ids=["shipped", "mutated"])

Work = Callable[[Any], Awaitable[Any]]


@dataclass
class Race:
    """Runs all schedules of what its actors do, and collects those after which `is_wrong`."""

    db: asyncpg.Connection
    stage: Stage
    wrong: list[list[str]] = field(default_factory=list)
    count: int = 0
    is_dead: bool = False
    """Whether the key is dead when the race begins."""

    async def before(self) -> None:
        """Let an event wait already."""
        await record(self.db, K)
        if self.is_dead:
            await fail(self.db)
            assert (await failures(self.db))[K]["state"] == "dead"

    async def run(self, *works: Work, is_wrong: Callable[[], Awaitable[bool]] | None = None) -> None:
        async def begin() -> None:
            await self.stage.clear()
            await self.db.execute("delete from outbox.event; delete from outbox.failure; delete from ledger.entry")
            await self.db.execute("delete from ledger.balance")
            await self.before()
            for actor, work in zip(self.stage.actors, works, strict=False):
                await self.stage.start(actor, _do(work, actor))

        async for moved in schedules(self.stage, begin):
            self.count += 1
            if await (is_wrong or self.is_stale)():
                self.wrong.append(moved)
        assert self.count > 1, "a race that can go one way only is none"

    async def is_stale(self) -> bool:
        """Let a daemon do what is left; then see whether what is cached is true."""
        if await audit(self.db):
            return True
        await drain(self.db)
        assert await pending(self.db) == []
        return await audit(self.db) != []


async def _do(work: Work, actor: Actor) -> None:
    # The first shows nobody anything before the commit, which is a step; the others touch their session only.
    actor.stepped.passing += (SETTLE, TIDY_SESSION, "set statement_timeout")
    await work(actor.stepped)


async def write(connection: Any) -> None:
    """Write an entry and its event."""
    await connection.execute("select ledger.record($1, 1)", K)


async def work(connection: Any) -> None:
    """Run a batch: claim, read, write and settle, commit."""
    await next_batch(connection)


async def work_at_once(connection: Any) -> None:
    """Run a batch in one statement, which stops only at the gate: claim and read, then write, settle and commit."""
    await run_at_once(connection)


in_both_forms = pytest.mark.parametrize("work", [work, work_at_once], ids=["by steps", "at once"])


def write_and(work: Work) -> Work:
    async def write_and_work(connection: Any) -> None:
        await write(connection)
        await work(connection)

    return write_and_work


async def call(connection: Any) -> None:
    """Recalculate past the daemon."""
    async with transaction(connection):
        await connection.execute(f"call ledger.recalculate(array['{K}'])")


@pytest.fixture
async def race(db: asyncpg.Connection, dsn: str) -> AsyncIterator[Race]:
    async with stage_on(dsn, "first", "second") as stage:
        yield Race(db, stage)


async def make_gated_ledger(db: asyncpg.Connection, *changes: tuple[str, str]) -> None:
    """Make the ledger, with the stage's gate between its reading and its writing."""
    await make_ledger(db, ("perform ledger.stop_at_gate();", "perform stage.stop();"), *changes)


@in_both_forms
@both_ways
async def test_two_daemons_on_one_key_leave_the_newest_result(race: Race, mutated: bool, work: Work) -> None:
    """The stale overwrite. The procedure does not lock, as nobody can force one to: the claim does."""
    await make_gated_ledger(race.db, (LEDGER_LOCK, ""))
    if mutated:
        await mutate(race.db, "claim_keys", "pg_try_advisory_xact_lock(outbox.key_lock_id(p_topic, k.key))", "true")
        # Out of patience at once, or the stage would let the first go on while the second waits for its event.
        await mutate(race.db, "take_events", "begin\n", "begin\n    raise exception using errcode = '55P03';\n")
    await race.run(work, write_and(work))
    assert bool(race.wrong) == mutated


@in_both_forms
@both_ways
async def test_an_event_that_comes_during_the_recalculation_of_its_key_is_kept(
    race: Race, mutated: bool, work: Work
) -> None:
    await make_gated_ledger(race.db)
    if mutated:
        cleared = "delete from outbox.failure as f where f.topic = p_topic and f.key = any (p_keys);"
        await mutate(race.db, "settle", cleared, cleared + cleared.replace("failure as f", "event as f"))
    await race.run(work, write)
    assert bool(race.wrong) == mutated


@in_both_forms
@both_ways
async def test_a_direct_call_and_a_daemon_on_one_key_leave_the_newest_result(
    race: Race, mutated: bool, work: Work
) -> None:
    await make_gated_ledger(race.db, *([(LEDGER_LOCK, "")] if mutated else []))
    await race.run(call, write_and(work))
    assert bool(race.wrong) == mutated


async def write_slowly(connection: Any) -> None:
    """Write an entry, and commit when others may have."""
    async with transaction(connection):
        await write(connection)


@both_ways
async def test_an_event_that_commits_after_later_ones_is_later_but_never_lost(race: Race, mutated: bool) -> None:
    """Order of ids against order of commits: what commits below the mark of a daemon is found by its sweep."""
    await make_ledger(race.db)
    marks: list[Hints] = []

    async def write_and_work_by_the_mark(connection: Any) -> None:
        hints = Hints(1)
        marks.append(hints)
        for now in (0.0, TRAIL_S):
            await write(connection)
            batch = await LIVE.next_batch(connection, hints.for_claim(now), after="", retries_first=False)
            assert batch
            hints.claimed(LEDGER, batch.claim.head_event_id, now)

    async def is_left_behind() -> bool:
        look = marks[-1].for_claim(2 * TRAIL_S, sweep=None if mutated else LEDGER)
        while await LIVE.next_batch(race.db, look, after="", retries_first=False):
            pass
        return await pending(race.db) != [] or await audit(race.db) != []

    await race.run(write_slowly, write_and_work_by_the_mark, is_wrong=is_left_behind)
    assert bool(race.wrong) == mutated


@both_ways
async def test_no_wake_up_is_lost_while_a_daemon_arms(
    race: Race, settings: Settings, monkeypatch: pytest.MonkeyPatch, mutated: bool
) -> None:
    """A writer against a daemon that finds nothing, arms and looks once more: it must not sleep over the event."""
    await make_ledger(race.db)
    if mutated:
        blind = "select false as ready, 0 as owed_count, null::float8 as next_attempt_s where $1::text[] is not null"
        monkeypatch.setattr(daemon.doorbell, "LOOK", blind)
    heard: list[object] = []
    sleeps: list[bool] = []

    async def go_to_sleep(connection: Any) -> None:
        heard.clear()
        await connection._connection.add_listener("outbox", lambda *told: heard.append(told))
        await next_batch(connection)
        await connection.execute("listen outbox")  # a batch tidies its session, which a daemon does not listen on
        doorbell = Doorbell(impatient(settings), uuid4(), Alarm(), Activity(linger_s=0), Hints(1))
        sleeps.append(await doorbell._fall_asleep(connection))

    async def sleeps_over_it() -> bool:
        await race.stage.actors[1].connection.execute("select")  # what was sent has arrived
        return sleeps[-1] and await pending(race.db) == [K] and not heard

    await race.run(write_slowly, go_to_sleep, is_wrong=sleeps_over_it)
    assert bool(race.wrong) == mutated


async def test_a_new_event_for_a_dead_key_earns_it_one_try_whenever_it_comes(race: Race) -> None:
    """Resurrection: against a worker that folds, in every order, and the failing recalculation that follows."""
    await make_ledger(race.db, ("perform ledger.stop_at_gate();", "raise exception 'poisoned';"))
    await race.db.execute(f"select outbox.set_topic('{LEDGER}', p_max_attempts => 1, p_retry_max_s => 86400)")

    async def has_another_end() -> bool:
        await drain(race.db)  # folds what came last
        raised = (await failures(race.db))[K]
        nothing_waits = await pending(race.db) == []
        await make_due(race.db)
        await fail(race.db)
        dead_again = (await failures(race.db))[K]
        await make_due(race.db)
        no_more = await next_batch(race.db) is None
        return not (
            raised["state"] == "retrying"
            and raised["attempts"] == 1
            and nothing_waits
            and (dead_again["state"], dead_again["attempts"]) == ("dead", 2)
            and no_more
        )

    race.is_dead = True
    await race.run(work, write_slowly, is_wrong=has_another_end)
    assert race.wrong == []


async def fail(connection: asyncpg.Connection) -> None:
    """Run a batch that fails, as a worker does."""
    with pytest.raises(CallFailed) as raised:
        await next_batch(connection)
    await CarefulRun(LIVE, connection, report=lambda _: None).run(raised.value)
