"""The scenarios of what operators run: backfill, replay, verify, migrate, and the small commands that write."""

from collections.abc import Sequence

from crash_daemon import check_true
from crash_process import Running, Stop
from crash_runs import Act, Ended
from crash_scenarios import Check, Scenario, Step
from crash_world import GUILTY, KEYS, Reports, World

BAD_NEWS = frozenset({1})
NO_DATABASE = frozenset({3})
TOPIC = "ledger.account"
PUPILS = "reports.student"


async def prepare_stale(world: World) -> None:
    """Leave every key stale, and no event that says so: only the operation itself can mend them. Three chunks."""
    await world.reset()
    await world.subject.forget_to_write(world.db)
    await world.db.execute("update outbox.topic set batch_keys = 2")


# Jobs


async def go_on(world: World, command: tuple[str, ...], *, leaves_dead: bool = False) -> None:
    """Resume the job if it was broken off, or begin anew where there is none yet; then let a daemon do the rest."""
    job = await world.db.fetchrow("select job_id, ended_at from outbox.job")
    again = command if job is None else ("job", "resume", str(job["job_id"]))
    if job is None or job["ended_at"] is None:
        assert await world.run(*again) in (0, int(leaves_dead)), f"{again} failed"
        await world.until_alone()
    assert await world.run("run", "--drain") == int(leaves_dead), "the next daemon could not drain"
    await world.until_alone()


async def check_job(world: World) -> None:
    """Assert that the job's books are in order: it did every key once, by its own account."""
    (job,) = await world.db.fetch("select state, done_count, key_count, error from outbox.job")
    assert (job["state"], job["done_count"]) == ("finished", job["key_count"]), dict(job)
    assert await world.db.fetchval("select count(*) from outbox.job_key") == 0


BACKFILL = ("backfill", "--topic", TOPIC)
BACKFILL_REPORTS = ("backfill", "--topic", PUPILS)


async def prepare_backfill(world: World) -> None:
    """Leave also an event of one key, which the backfill leaves to the daemon."""
    await prepare_stale(world)
    await world.db.execute("select outbox.enqueue($1, 'b')", TOPIC)


def check_continued(command: tuple[str, ...], guilty: Sequence[str] = ()) -> Check:
    """Let the job be finished; no key was skipped, since nothing else mends them."""

    async def check(world: World, _ended: Ended) -> None:
        await go_on(world, command, leaves_dead=bool(guilty))
        await check_job(world)
        await check_true(world, guilty)

    return check


async def prepare_careful_backfill(world: World) -> None:
    await prepare_stale(world)
    await world.db.execute("insert into ledger.trouble values ($1, 'raise')", GUILTY)


async def prepare_busy_backfill(world: World) -> None:
    """Hold the lock of a key, as somebody does who is at work on it: it is left to the daemon."""
    await prepare_stale(world)
    await world.db.execute("select pg_advisory_lock(outbox.key_lock_id($1, 'd'))", TOPIC)


async def check_busy_backfill(world: World, ended: Ended) -> None:
    await world.db.execute("select pg_advisory_unlock_all()")
    await check_continued(BACKFILL)(world, ended)


async def prepare_failing_backfill(world: World) -> None:
    """Let the topic be in trouble: the job is given up, and notes why."""
    await prepare_stale(world)
    await world.db.execute("insert into ledger.trouble select k, 'gone' from unnest($1::text[]) as k", KEYS)


async def check_failing_backfill(world: World, ended: Ended) -> None:
    await world.db.execute("delete from ledger.trouble")
    await check_continued(BACKFILL)(world, ended)


REPLAY = ("replay", TOPIC, *(word for key in KEYS for word in ("--key", key)), "--yes")
REPLAY_DEAD = ("replay", TOPIC, "--dead", "--yes")


async def prepare_dead(world: World) -> None:
    """Leave every key dead."""
    await prepare_stale(world)
    await world.db.execute(
        "insert into outbox.failure (topic, key, state, attempts, next_attempt_at) "
        "select $1, k, 'dead', 1, now() + interval '1 hour' from unnest($2::text[]) as k",
        TOPIC,
        KEYS,
    )


# Verification


def repair(topic: str) -> tuple[str, ...]:
    return ("verify", "--topic", topic, "--repair")


async def check_repair(world: World, ended: Ended) -> None:
    """Verify twice more: the first mends what the broken one left, the second finds nothing."""
    topic = world.subject.topic
    if ended.fault:
        assert await world.run(*repair(topic)) in (0, 1)
    assert await world.run("verify", "--topic", topic) == 0
    assert await world.db.fetchval("select count(*) from outbox.drift") == 0
    await check_true(world)


# Migrations

_BOOKS = """
select coalesce(md5(string_agg(b, ' ' order by b)), '') from (
    select set_name || version from outbox.migration
    union all
    select set_name || file_name || checksum from outbox.routine
) as each (b)
"""
_CATALOG = """
select coalesce(md5(string_agg(o, ' ' order by o)), '') from (
    select c.oid::regclass || c.relkind::text || a.attname || a.atttypid::regtype
    from pg_class as c join pg_attribute as a on a.attrelid = c.oid
    where c.relnamespace::regnamespace::text = any ($1::text[])
    union all
    select p.oid::regprocedure || md5(p.prosrc) from pg_proc as p
    where p.pronamespace::regnamespace::text = any ($1::text[])
) as each (o)
"""
OURS = ["outbox", "reports", "school"]


async def books_and_catalog(world: World) -> tuple[str, str]:
    """Return what the database says it holds, and what it does hold; each as a digest, "" for nothing."""
    has_books = await world.db.fetchval("select to_regclass('outbox.migration') is not null")
    return await world.db.fetchval(_BOOKS) if has_books else "", await world.db.fetchval(_CATALOG, OURS)


def note_states() -> Act:
    """Note the catalog that goes with each state of the books, while nothing has gone wrong yet."""

    async def act(world: World, _running: Running, stop: Stop) -> None:
        if stop.point.statement == "COMMIT;" and stop.point.phase == "after":
            books, catalog = await books_and_catalog(world)
            world.catalogs.setdefault(books, catalog)

    return act


async def begin_with(world: World, template: str) -> None:
    """Begin with a copy of this database."""
    await world.renew(template)
    books, catalog = await books_and_catalog(world)
    world.catalogs.setdefault(books, catalog)


async def prepare_up(world: World) -> None:
    await begin_with(world, "template0")


async def prepare_down(world: World) -> None:
    await begin_with(world, world.databases.template)


def check_migrated(command: tuple[str, ...], *, status: int) -> Check:
    """Assert that the books tell the truth, and that a second run completes what an undisturbed one makes."""

    async def check(world: World, _ended: Ended) -> None:
        books, catalog = await books_and_catalog(world)
        assert world.catalogs.get(books) == catalog, "the books do not tell what the database holds"
        assert await world.run("migrate", "status") in (0, 1), "the status can't be told"
        assert await world.run(*command) == 0, "it can't be completed"
        assert await world.run("migrate", "status") == status
        books, catalog = await books_and_catalog(world)
        assert world.catalogs.get(books) == catalog, "not what an undisturbed run makes"

    return check


UP = ("migrate", "up")
DOWN = ("migrate", "down", "--yes")


# Small commands


async def prepare_job(world: World) -> None:
    """Leave a job that nobody runs."""
    await world.reset()
    await world.db.execute(
        "insert into outbox.job (job_id, kind, topic, part, is_named, key_count, chunk_keys) overriding system value "
        "values (1, 'backfill', $1, '{}', true, 1, 1)",
        TOPIC,
    )
    await world.db.execute("insert into outbox.job_key values (1, 'a')")


async def prepare_spare_topic(world: World) -> None:
    await world.reset()
    await world.db.execute("select outbox.set_topic('ledger.spare', 'ledger.recalculate')")
    await world.db.execute("select outbox.enqueue('ledger.spare', 'a')")


async def prepare_gone(world: World) -> None:
    """Leave a failure and the history of a key that has no source."""
    await world.reset()
    await world.db.execute("select outbox.make_partitions(1)")
    await world.db.execute(
        "insert into outbox.failure (topic, key, next_attempt_at) values ($1, 'gone', now() + interval '1 hour')", TOPIC
    )
    await world.db.execute(
        "insert into outbox.batch (topic, keys, event_count, started_at, recalculate_ms) "
        "values ($1, '{a,gone}', 1, now(), 1)",
        TOPIC,
    )


async def prepare_pause(world: World) -> None:
    await world.reset()


async def prepare_resume(world: World) -> None:
    await world.reset()
    await world.db.execute("select outbox.pause_topic($1, 'a test')", TOPIC)


def small(name: str, command: str, prepare: Step, is_done: str) -> Scenario:
    """Return the scenario of a command that either did it all or nothing, and can be given again then."""
    words = tuple(command.split())

    async def check(world: World, ended: Ended) -> None:
        if not await world.db.fetchval(f"select {is_done}"):
            assert ended.exit_code != 0, "it said it was done"
            assert await world.run(*words) == 0
        assert await world.db.fetchval(f"select {is_done}")

    return Scenario(name, words, prepare, check)


OF_TOPIC = f"from outbox.topic where topic = '{TOPIC}'"
SMALL = (
    small("topic pause", f"topic pause {TOPIC}", prepare_pause, f"paused_at is not null {OF_TOPIC}"),
    small("topic resume", f"topic resume {TOPIC}", prepare_resume, f"paused_at is null {OF_TOPIC}"),
    small("topic set", f"topic set {TOPIC} --batch-keys 7", prepare_pause, f"batch_keys = 7 {OF_TOPIC}"),
    small(
        "topic remove", "topic remove ledger.spare --lose-events --yes", prepare_spare_topic,
        "(select count(*) from outbox.topic where topic = 'ledger.spare') + (select count(*) from outbox.event) = 0",
    ),
    small("failures drop", f"failures drop {TOPIC} --dead --yes", prepare_dead, "count(*) = 0 from outbox.failure"),
    small(
        "forget", f"forget {TOPIC} gone --yes", prepare_gone,
        "not exists (select from outbox.failure) and not exists (select from outbox.batch where 'gone' = any (keys))",
    ),
    small("job pause", "job pause 1", prepare_job, "state = 'paused' from outbox.job"),
    small(
        "job cancel", "job cancel 1 --yes", prepare_job,
        "state = 'cancelled' and not exists (select from outbox.job_key) from outbox.job",
    ),
)  # fmt: skip


SCENARIOS = (
    Scenario("backfill", BACKFILL, prepare_backfill, check_continued(BACKFILL)),
    Scenario("backfill, careful", BACKFILL, prepare_careful_backfill, check_continued(BACKFILL, [GUILTY]), BAD_NEWS),
    Scenario("backfill, busy", BACKFILL, prepare_busy_backfill, check_busy_backfill),
    Scenario("backfill, given up", BACKFILL, prepare_failing_backfill, check_failing_backfill, BAD_NEWS),
    Scenario("backfill, reports", BACKFILL_REPORTS, prepare_stale, check_continued(BACKFILL_REPORTS), subject=Reports),
    Scenario("replay", REPLAY, prepare_stale, check_continued(REPLAY)),
    Scenario("replay, dead", REPLAY_DEAD, prepare_dead, check_continued(REPLAY_DEAD)),
    Scenario("verify --repair", repair(TOPIC), prepare_stale, check_repair, BAD_NEWS),
    Scenario("verify --repair, reports", repair(PUPILS), prepare_stale, check_repair, BAD_NEWS, subject=Reports),
    Scenario("migrate up", UP, prepare_up, check_migrated(UP, status=0), play=note_states),
    Scenario("migrate down", DOWN, prepare_down, check_migrated(DOWN, status=1), play=note_states),
    *SMALL,
)
