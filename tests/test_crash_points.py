"""The daemon, its backend, or all of Postgres ends, at every step: nothing is lost or stale, no innocent key charged.

The steps are those that a run passes, not those that somebody thought of. Here every point of a live batch gets one of
the three faults in turn, and so does one point in 25 of every other scenario; `make crashpoints` does all there are.
"""

import asyncio
import re
from collections.abc import Iterator
from functools import cache

import asyncpg
import pytest
from asyncpg.protocol.protocol import BaseProtocol
from crash_daemon import SCENARIOS as OF_THE_DAEMON
from crash_launcher import WatchedProtocol
from crash_operations import SCENARIOS as OF_THE_OPERATORS
from crash_process import Point
from crash_scenarios import Scenario
from crash_sweep import Rotation, sweep
from crash_world import Site, breaking_ground

from daemon.sql import SQL_ROOT

pytestmark = [pytest.mark.own_server, pytest.mark.timeout(600)]

LIVE, *OTHERS = (*OF_THE_DAEMON, *OF_THE_OPERATORS)
SHARES = 4
ONE_IN = 25
"""No multiple of three: a share must not be of one phase only."""

AFTER_A_CRASH = {"excuse_keys"}
"""Statements that run only once Postgres has crashed: so in every scenario, with that fault."""

DEMO = re.compile(r"demo_|sample_school_")
"""Statements that only ever write to a database made for show."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a server that may be crashed."""
    with breaking_ground(tmp_path_factory.mktemp("crash") / "output") as site:
        yield site


@pytest.mark.parametrize("share", range(SHARES))
async def test_a_fault_at_any_point_of_a_live_batch_costs_nothing(site: Site, share: int) -> None:
    account = await sweep(site, LIVE, Rotation(share, SHARES))
    assert account.is_good, "\n".join(account.failures) or "no point was hit"


@pytest.mark.parametrize("scenario", OTHERS, ids=lambda each: each.name)
async def test_a_fault_anywhere_else_costs_nothing_either(site: Site, scenario: Scenario) -> None:
    account = await sweep(site, scenario, Rotation(OTHERS.index(scenario) % ONE_IN, ONE_IN))
    assert account.is_good, "\n".join(account.failures) or "no point was hit"


async def test_the_points_of_a_live_batch_are_all_there(site: Site) -> None:
    """Or a hook that has gone blind would make every test above pass."""
    points = await points_of(site, LIVE)
    for statement in ("run_batch", "arm", "look", "is_commit_queued", "disarm", "heartbeat", "echo", "say_goodbye"):
        for call in ("prepare", "bind_execute"):
            assert phases(points, statement, call) >= {"before", "answered", "after"}, (statement, call)
    tidying = next(each.statement for each in points if each.statement.startswith("reset session authorization"))
    assert phases(points, tidying, "query") >= {"before", "answered", "after"}
    assert "sent" in phases(points, "run_batch", "bind_execute"), "nothing ends inside a batch"


async def test_the_points_of_a_batch_that_goes_step_by_step_are_all_there(site: Site) -> None:
    points = await points_of(site, next(each for each in OTHERS if each.name == "live, cautious"))
    for statement in ("claim", "suspect_keys", "recalculate", "settle"):
        for call in ("prepare", "bind_execute"):
            assert phases(points, statement, call) >= {"before", "answered", "after"}, (statement, call)
    for words in ("begin isolation level", "commit"):
        statement = next(each.statement for each in points if each.statement.startswith(words))
        assert phases(points, statement, "query") >= {"before", "answered", "after"}, statement
    assert "sent" in phases(points, "recalculate", "bind_execute"), "nothing ends inside the procedure"


def phases(points: list[Point], statement: str, call: str) -> set[str]:
    return {each.phase for each in points if (each.statement, each.call) == (statement, call)}


async def points_of(site: Site, scenario: Scenario) -> list[Point]:
    async with site.world(scenario.subject()) as world:
        return (await scenario.run(world)).points


async def test_every_statement_that_writes_is_in_a_scenario(site: Site, db: asyncpg.Connection) -> None:
    """A new one needs a scenario that runs it; that gives it its crash points."""
    covered = {each.statement for scenario in (LIVE, *OTHERS) for each in await points_of(site, scenario)}
    rows = await db.fetch(
        "select distinct pronamespace::regnamespace || '.' || proname as name from pg_proc "
        "where pronamespace::regnamespace::text = any (array['outbox', 'reports', 'school']) and provolatile = 'v'"
    )
    writers = [row["name"] for row in rows]
    assert "outbox.claim" in writers
    writing = {name for name, text in queries().items() if not DEMO.match(name) and writes(text, writers)}
    assert {"claim", "settle", "advance_job", "record_migration", "say_goodbye"} <= writing
    assert writing - covered == AFTER_A_CRASH


@cache
def queries() -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in SQL_ROOT.glob("queries/*.sql")}


def writes(text: str, writers: list[str]) -> bool:
    """Tell whether a statement changes rows, or calls a routine that is free to."""
    code = re.sub(r"--.*|'[^']*'", "", text)
    changes = re.search(r"\b(insert into|update|delete from)\b", code)
    return bool(changes) or any(re.search(rf"\b{re.escape(name)}\(", code) for name in writers)


def test_every_await_of_the_protocol_is_a_stop() -> None:
    """Whatever can be awaited is one, so that a method which asyncpg adds is, too; this is what it has now."""
    awaited = {name for name in dir(BaseProtocol) if asyncio.iscoroutinefunction(getattr(BaseProtocol, name))}
    assert {"prepare", "bind_execute", "query", "close_statement", "close", "copy_in"} <= awaited
    assert not awaited & set(vars(WatchedProtocol)), "the hook must not have one of its own"
