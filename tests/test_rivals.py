"""The rivals of the benchmarks work, and lose what their documentation lets one expect; see benchmarks/rivals."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from waiting import eventually

from benchmarks.bench import SERVER_SETTINGS, Bench
from benchmarks.rivals import SYSTEMS, can_run
from benchmarks.rivals.contest import Contest, TooSlow, contest
from benchmarks.rivals.system import HOW_TO_INSTALL, System, is_installed
from daemon.embedded import EmbeddedPostgres, embedded_postgres

PUPILS = 100
PATIENCE_S = 30

pytestmark = [
    pytest.mark.own_server,
    pytest.mark.skipif(not is_installed(), reason=HOW_TO_INSTALL),
    pytest.mark.xdist_group("rivals"),
]

LOSES_WHILE_RUNNING = {"PgQueuer, dedupe_key", "Chancy, unique_key"}
"""A new event is de-duplicated away although the job in hand has read the pupil's feedback already."""
LOSES_IN_FLIGHT = {
    "PgQueuer, dedupe_key",
    "Procrastinate, queueing_lock",
    "pg-boss, singletonKey",
    "pg-boss, singletonKey, batch handler",
}
"""An event is de-duplicated away by a job that runs before the event's transaction commits."""

DEDUPING = [system for system in SYSTEMS if system.dedupes]


def _by_name(system: object) -> str:
    return system.name if isinstance(system, System) else repr(system)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with embedded_postgres(settings=SERVER_SETTINGS | {"fsync": "off"}) as server:
        yield server


@asynccontextmanager
async def turn_of(system: System, server: EmbeddedPostgres) -> AsyncIterator[Contest]:
    async with contest(Bench(server, 1, 1), [system], PUPILS) as ground:
        await ground.give_turn(system)
        yield ground


@pytest.mark.parametrize("system", SYSTEMS, ids=_by_name)
async def test_every_system_works_off_two_hundred_events_and_leaves_true_reports(
    system: System, server: EmbeddedPostgres
) -> None:
    if not can_run(system):
        pytest.skip(f"{system.name}: benchmarks/rivals/install could not bring {system.needs}")
    async with turn_of(system, server) as ground:
        async with ground.working(system):
            for _ in range(2):
                for turn in range(PUPILS):
                    await ground.write(turn)
                await ground.drained(system, within_s=PATIENCE_S)
        assert await ground.stale(system) == []


@pytest.mark.parametrize("system", DEDUPING, ids=_by_name)
async def test_deduplicating_on_enqueue_loses_an_event_while_its_pupils_job_runs(
    system: System, server: EmbeddedPostgres
) -> None:
    async with turn_of(system, server) as ground, ground.working(system):
        async with _reports_held(ground):  # so that the job waits between reading and writing
            await ground.write(1)
            await eventually(lambda: _is_held_up(ground.connection))
            await ground.write(1)
        await ground.drained(system, within_s=PATIENCE_S)
        assert bool(await ground.stale(system)) == (system.name in LOSES_WHILE_RUNNING)


@pytest.mark.parametrize("system", DEDUPING, ids=_by_name)
async def test_deduplicating_on_enqueue_loses_an_event_whose_writer_commits_after_the_job(
    system: System, server: EmbeddedPostgres
) -> None:
    async with turn_of(system, server) as ground:
        await ground.write(1)
        async with ground.bench.connection(ground.database) as reading, ground.connection.transaction():
            await ground.write(1)
            async with system.working(ground.dsn):
                if system.name in LOSES_IN_FLIGHT:
                    await _drained(reading, system, within_s=PATIENCE_S)
                else:  # it locks the waiting job, can't work it off before the commit, and loses nothing
                    with pytest.raises(TimeoutError):
                        await _drained(reading, system, within_s=5)
        async with system.working(ground.dsn):
            await ground.drained(system, within_s=PATIENCE_S)
        assert bool(await ground.stale(system)) == (system.name in LOSES_IN_FLIGHT)


async def test_a_contestant_that_does_not_work_is_told_of(server: EmbeddedPostgres) -> None:
    system = SYSTEMS[0]
    async with turn_of(system, server) as ground:
        await ground.write(1)
        with pytest.raises(TooSlow, match="recalcd has 1 events left"):
            await ground.drained(system, within_s=0.1)
        assert len(await ground.stale(system)) == 1


@asynccontextmanager
async def _reports_held(ground: Contest) -> AsyncIterator[None]:
    async with ground.bench.connection(ground.database) as holding, holding.transaction():
        await holding.execute("select from reports.report_student_rollups for update")
        yield


async def _is_held_up(connection: asyncpg.Connection) -> bool:
    return bool(
        await connection.fetchval(
            "select exists (select from pg_stat_activity as a where a.datname = current_database()"
            " and a.wait_event_type = 'Lock' and a.query ilike 'call reports.recalculate_students%')"
        )
    )


async def _drained(connection: asyncpg.Connection, system: System, *, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while await connection.fetchval(f"select exists (select {system.left})"):  # noqa: ASYNC110  # in the database
            await asyncio.sleep(0.05)
