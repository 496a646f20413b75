"""The daemon's scenarios: batches in normal and in careful mode, suspicion, the doorbell, housekeeping, the audit."""

import signal
from collections import Counter
from collections.abc import Sequence

from crash_process import Running, Stop
from crash_runs import Act, Ended, Play
from crash_scenarios import Scenario
from crash_world import GUILTY, Reports, World
from engine import vanish
from servers import as_daemon

ARMED = ("recalcd listener", "look", "bind_execute", "after")
AT_WORK = ("recalcd worker", "run_batch", "bind_execute", "before")
MOST_RINGS = 4
"""How often to write while a batch is in hand: some may ring when it is over, and none after a fault that disarmed."""
MANY_POLLS = 30
AUDITED = ("recalcd auditor", "commit", "query", "after")


async def check_true(world: World, guilty: Sequence[str] = ()) -> None:
    """Assert the promise, and that only the guilty were charged: here one charge is death, and stays for an hour."""
    stale = await world.subject.stale(world.db)
    assert stale == list(guilty), f"stale: {stale}"
    pending = [tuple(row) for row in await world.db.fetch("select key, reason from outbox.event")]
    assert not pending, f"still pending: {pending}"
    failures = [tuple(row) for row in await world.db.fetch("select key, attempts, state, sqlstate from outbox.failure")]
    assert [each[:2] for each in failures] == [(key, 1) for key in guilty], f"charged: {failures}"
    suspects = [row["key"] for row in await world.db.fetch("select key from outbox.suspect")]
    assert {*suspects} <= {*guilty}, f"still suspected: {suspects}"


async def check_accounts(world: World, ended: Ended) -> None:
    """Assert that each event is accounted for once, and readers were told of each change once."""
    written = await world.db.fetchval("select count(*) from ledger.entry where amount = 2")
    accounted = await world.db.fetchval(
        "select (select coalesce(sum(event_count), 0) from outbox.batch)"
        " + (select coalesce(sum(event_count), 0) from outbox.failure)"
    )
    assert accounted == written, f"{written} events were written, {accounted} are accounted for"
    rows = await world.db.fetch("select unnest(changed_keys) as key from outbox.batch")
    changed = Counter(row["key"] for row in rows)
    missed, invented = changed - world.told, world.told - changed
    assert not invented, f"readers were told what did not happen: {invented}"
    assert not missed or ended.fault == "crash", f"readers were not told: {missed}"  # a crash ends the reader, too


async def drain(world: World, ended: Ended, *, leaves_dead: bool = False) -> None:
    """Start another daemon and let it work until nothing is left; not after one that said it had done just that."""
    if ended.exit_code not in (0, 1):
        assert await world.run("run", "--drain") == int(leaves_dead), "the next daemon could not drain"
        await world.until_alone()


async def check_live(world: World, ended: Ended) -> None:
    await drain(world, ended)
    await check_true(world)
    await check_accounts(world, ended)


async def check_reports(world: World, ended: Ended) -> None:
    await drain(world, ended)
    await check_true(world)


async def check_guilty(world: World, ended: Ended) -> None:
    await drain(world, ended, leaves_dead=True)
    await check_true(world, guilty=[GUILTY])
    await check_accounts(world, ended)


async def check_fatal(world: World, ended: Ended) -> None:
    """Go on without a drain: that would wait for the try which the event of a convicted key has earned it."""
    if ended.exit_code != 0:
        play = Play(world, ("run",), world.environment(database_url=as_daemon(world.dsn)), stop_when_idle())
        assert (await play.run()).exit_code == 0
        await world.until_alone()
    stale = await world.subject.stale(world.db)
    charged = [row["key"] for row in await world.db.fetch("select key from outbox.failure where attempts = 1")]
    # Whom a fault hits while it is tried alone, suspected for the killer's sake, looks like a killer: it owes a retry.
    assert GUILTY in charged, f"charged: {charged}"
    assert len(charged) <= (2 if ended.fault else 1), f"charged: {charged}"
    assert {*stale} <= {*charged}, f"stale: {stale}"
    await check_accounts(world, ended)


async def prepare_live(world: World) -> None:
    """Leave an event of every key."""
    await world.reset()
    await world.subject.write(world.db)


async def prepare_retry(world: World) -> None:
    """Leave also a failed key whose next attempt is due."""
    await prepare_live(world)
    query = "insert into outbox.failure (topic, key, next_attempt_at) values ($1, 'f', now() - interval '1 second')"
    await world.db.execute(query, world.subject.topic)


async def prepare_cautious(world: World) -> None:
    await prepare_live(world)
    await vanish(world.db)


async def make_trouble(world: World, kind: str) -> None:
    await world.db.execute("insert into ledger.trouble values ($1, $2)", GUILTY, kind)


async def prepare_careful(world: World) -> None:
    await prepare_live(world)
    await make_trouble(world, "raise")


async def prepare_careful_and_cautious(world: World) -> None:
    await prepare_careful(world)
    await vanish(world.db)


async def prepare_fatal(world: World) -> None:
    await prepare_live(world)
    await make_trouble(world, "end")


async def is_idle(world: World, stop: Stop) -> bool:
    """Tell whether the daemon is about to sleep."""
    return stop.point.site == ARMED and not await world.db.fetchval("select exists (select from outbox.event)")


def sleep_wake_stop() -> Act:
    """Write when the daemon is about to sleep, so that a bell must wake it.

    Then write while its worker is busy, until it mutes the bell; and stop it when it has nothing to do.
    """
    scene = rings = 0

    async def act(world: World, running: Running, stop: Stop) -> None:
        nonlocal scene, rings
        match scene:
            case 0 if await is_idle(world, stop):
                await world.subject.write(world.db)
                scene = 1
            case 1 if stop.point.statement == "disarm" or rings == MOST_RINGS:
                scene = 2
            case 1 if stop.point.site == AT_WORK:
                await world.subject.write(world.db)
                rings += 1
            case 2 if await is_idle(world, stop):
                running.signal(signal.SIGTERM)
                scene = 3

    return act


def stop_when_idle() -> Act:
    """Stop the daemon when it is about to sleep."""
    is_stopping = False

    async def act(world: World, running: Running, stop: Stop) -> None:
        nonlocal is_stopping
        if not is_stopping and await is_idle(world, stop):
            is_stopping = True
            running.signal(signal.SIGTERM)

    return act


# Housekeeping

PARTITIONS = "select inhrelid::regclass::text from pg_inherits where inhparent = 'outbox.batch'::regclass order by 1"


async def prepare_housekeeping(world: World) -> None:
    """Leave no partition for the days to come, and two of days long gone."""
    await prepare_live(world)
    for row in await world.db.fetch(PARTITIONS):
        await world.db.execute(f"drop table {row[0]}")
    for day in ("20200101", "20200102"):
        await world.db.execute(
            f"create table outbox.batch_{day} partition of outbox.batch "
            f"for values from ('{day} 00:00+0') to ('{day} 24:00+0')"
        )


async def check_housekeeping(world: World, ended: Ended) -> None:
    await check_live(world, ended)
    if ended.fault:  # a daemon whose round was broken makes the next one a minute later
        assert await world.run("run", "--drain") == 0
    days = "select 'outbox.batch_' || to_char(now() at time zone 'utc' + n * interval '1 day', 'YYYYMMDD')"
    expected = await world.db.fetch(f"{days} from generate_series(0, 7) as n order by 1")
    assert [row[0] for row in await world.db.fetch(PARTITIONS)] == [row[0] for row in expected]


# The audit in the background


async def prepare_audit(world: World) -> None:
    """Leave rows that drifted."""
    await world.reset()
    await world.subject.forget_to_write(world.db)


def stop_when_audited() -> Act:
    """Stop the daemon when it has noted the drift, or has polled so often that it will not: a broken audit pauses."""
    is_stopping = False

    async def act(world: World, running: Running, stop: Stop) -> None:
        nonlocal is_stopping
        if is_stopping:
            return
        if stop.point.site == AUDITED:
            is_stopping = await world.db.fetchval("select exists (select from outbox.drift)")
        elif stop.point.statement == "run_batch":
            is_stopping = stop.point.occurrence >= MANY_POLLS
        if is_stopping:
            running.signal(signal.SIGTERM)

    return act


async def check_audit(world: World, _ended: Ended) -> None:
    """Assert that the audit mended nothing, and left nothing that keeps a repair from it."""
    assert await world.subject.stale(world.db) != []
    assert await world.run("verify", "--topic", world.subject.topic, "--repair") == 1
    assert await world.db.fetchval("select count(*) from outbox.drift") == 0
    await check_true(world)


RUN = ("run",)
WORKER = ("recalcd worker", "recalcd witness")
SCENARIOS = (
    Scenario("live", RUN, prepare_retry, check_live, play=sleep_wake_stop),
    Scenario("live, cautious", RUN, prepare_cautious, check_live, play=stop_when_idle, sessions=WORKER),
    Scenario(
        "live, reports", RUN, prepare_live, check_reports,
        subject=Reports, play=stop_when_idle, sessions=WORKER,
    ),
    Scenario("careful", RUN, prepare_careful, check_guilty, play=stop_when_idle, sessions=WORKER),
    Scenario(
        "careful, cautious", RUN, prepare_careful_and_cautious, check_guilty,
        play=stop_when_idle, sessions=WORKER,
    ),
    Scenario("fatal", RUN, prepare_fatal, check_fatal, play=stop_when_idle, sessions=WORKER),
    Scenario("drain", ("run", "--drain"), prepare_live, check_live, sessions=("recalcd drain", "recalcd worker")),
    Scenario(
        "housekeeping", RUN, prepare_housekeeping, check_housekeeping,
        play=stop_when_idle, sessions=("recalcd housekeeper",),
    ),
    Scenario(
        "audit", RUN, prepare_audit, check_audit,
        settings={"verify_keys_per_minute": "6000", "poll_interval_s": "0.2"}, play=stop_when_audited,
        sessions=("recalcd auditor",),
    ),
)  # fmt: skip
