"""Shipped code, one statement at a time: actors that stop before every statement, and a stage that moves one of them.

An actor runs what the daemon runs, on a connection that lets a statement through only when the stage says so. After
each move the stage waits until everybody stands still: before a statement, at the gate inside a procedure, or behind
somebody's lock, as pg_locks tells. So what happens next depends on who is moved next, and on nothing else.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import asyncpg

from daemon.database import close

GATE = 4712
"""Advisory lock class of the gates: `stage.stop()` stops a session while the gatekeeper holds the gate of its pid."""

DEADLOCK_TIMEOUT_S = 0.01
"""Actors look for deadlocks this soon, and the stage waits until they have looked."""

STAGE_SQL = """
create schema stage;
create function stage.stop() returns void language plpgsql set lock_timeout = 0 as $$
begin
    perform pg_advisory_lock_shared(4712, pg_backend_pid());
    perform pg_advisory_unlock_shared(4712, pg_backend_pid());
end $$;
"""

# Who waits for autovacuum, as while it truncates a table, goes on by himself; and so does who waits for a session of
# another database, as for the lock under which all commits that notify line up.
_WAITING = """
select l.pid, l.locktype = 'advisory' and l.classid = 4712 and l.objsubid = 2 as is_at_gate
from pg_locks as l
where not l.granted
  and exists (
      select from pg_stat_activity as a
      where a.pid = any (pg_blocking_pids(l.pid)) and a.backend_type = 'client backend'
        and a.datname = current_database()
  )
"""


class Stands(Enum):
    """Where an actor stands still."""

    IDLE = "idle"
    BEFORE_A_STATEMENT = "before a statement"
    AT_THE_GATE = "at the gate"
    BEHIND_A_LOCK = "behind a lock"


class Stepped:
    """A connection whose user stops before every statement, but for those that begin like `passing`."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._go = asyncio.Event()
        self.is_stopped = False
        self.passing: tuple[str, ...] = ("begin", "rollback")  # nobody else can see those

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, query: str, *arguments: object) -> Any:
        return await self._pass(self._connection.execute, query, *arguments)

    async def fetch(self, query: str, *arguments: object) -> Any:
        return await self._pass(self._connection.fetch, query, *arguments)

    async def fetchrow(self, query: str, *arguments: object) -> Any:
        return await self._pass(self._connection.fetchrow, query, *arguments)

    async def fetchval(self, query: str, *arguments: object) -> Any:
        return await self._pass(self._connection.fetchval, query, *arguments)

    async def _pass(self, method: Callable[..., Awaitable[Any]], query: str, *arguments: object) -> Any:
        if not query.startswith(self.passing):
            self.is_stopped = True
            await self._go.wait()
            self._go.clear()
        return await method(query, *arguments)

    def go(self) -> None:
        """Let the next statement through."""
        self.is_stopped = False
        self._go.set()


@dataclass(eq=False)
class Actor:
    """A session, and what it is doing."""

    name: str
    connection: asyncpg.Connection
    stands: Stands = Stands.IDLE
    gate_is_closed: bool = False
    task: asyncio.Task[Any] | None = None

    def __post_init__(self) -> None:
        self.stepped: Any = Stepped(self.connection)
        self.pid: int = self.connection.get_server_pid()

    @property
    def is_moving(self) -> bool:
        return self.task is not None and not self.task.done() and not self.stepped.is_stopped

    @property
    def can_move(self) -> bool:
        return self.stands in (Stands.BEFORE_A_STATEMENT, Stands.AT_THE_GATE)

    async def leave(self) -> None:
        """Give up what it does, roll back, and give back all locks."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        self.task, self.stands, self.gate_is_closed = None, Stands.IDLE, False
        self.stepped = Stepped(self.connection)
        await self.connection.reset()


@dataclass
class Stage:
    """The actors, and a session that opens and closes the gates and sees who waits."""

    gatekeeper: asyncpg.Connection
    actors: list[Actor] = field(default_factory=list)

    async def start(self, actor: Actor, work: Coroutine[Any, Any, Any]) -> None:
        """Let an idle actor begin, up to its first statement; what it does without stepping is done at once."""
        assert actor.stands is Stands.IDLE
        actor.task = asyncio.create_task(work)
        await self._until_still()

    async def move(self, actor: Actor) -> None:
        """Let an actor go on by one statement, to the gate if it comes by one; or on from the gate."""
        assert actor.can_move
        if actor.stands is Stands.AT_THE_GATE:
            await self._open_gate(actor)
        else:
            await self._close_gate(actor)
            actor.stepped.go()
        await self._until_still()

    async def cancel(self, actor: Actor) -> None:
        """Cancel the statement of an actor who waits for a lock, and which is its last."""
        assert actor.task is not None
        await self.gatekeeper.execute("select pg_cancel_backend($1)", actor.pid)
        await asyncio.wait([actor.task])
        await self._until_still()

    async def clear(self) -> None:
        """Send everybody home."""
        await self.gatekeeper.execute("select pg_advisory_unlock_all()")
        for actor in self.actors:
            await actor.leave()

    async def _close_gate(self, actor: Actor) -> None:
        await self.gatekeeper.execute("select pg_advisory_lock($1, $2)", GATE, actor.pid)
        actor.gate_is_closed = True

    async def _open_gate(self, actor: Actor) -> None:
        if actor.gate_is_closed:
            await self.gatekeeper.execute("select pg_advisory_unlock($1, $2)", GATE, actor.pid)
            actor.gate_is_closed = False

    async def _until_still(self) -> None:
        """Wait until nobody moves; then note where everybody stands."""
        known = {actor for actor in self.actors if actor.stands is Stands.BEHIND_A_LOCK}
        waiting = await self._waiting()
        blocked = {actor for actor in self.actors if actor.is_moving and not waiting[actor.pid]}
        if blocked - known and len(blocked) > 1:  # perhaps a deadlock: one of them is about to be told
            await asyncio.sleep(3 * DEADLOCK_TIMEOUT_S)
            waiting = await self._waiting()
        for actor in self.actors:
            actor.stands = self._place(actor, waiting)
        for actor in self.actors:
            if not actor.is_moving:
                await self._open_gate(actor)
        for actor in self.actors:
            if actor.stands is Stands.IDLE and actor.task is not None:
                ended, actor.task = actor.task, None
                ended.result()  # raises what went wrong

    async def _waiting(self) -> dict[int, bool]:
        """Wait until everybody who moves waits for a lock; return their pids, and whether it is that of the gate."""
        while True:
            moving = [actor for actor in self.actors if actor.is_moving]
            rows = await self.gatekeeper.fetch(_WAITING)
            waiting = {row["pid"]: row["is_at_gate"] for row in rows}
            if any(not actor.is_moving for actor in moving):
                continue  # it ended meanwhile, and may have let go of somebody who was seen to wait
            if all(actor.pid in waiting for actor in moving):
                return waiting

    @staticmethod
    def _place(actor: Actor, waiting: dict[int, bool]) -> Stands:
        if actor.task is None or actor.task.done():
            return Stands.IDLE
        if actor.stepped.is_stopped:
            return Stands.BEFORE_A_STATEMENT
        return Stands.AT_THE_GATE if waiting[actor.pid] else Stands.BEHIND_A_LOCK


@contextlib.asynccontextmanager
async def stage_on(dsn: str, *names: str) -> AsyncIterator[Stage]:
    """Set a stage in a database that has the schema stage; all sessions end with the block."""
    opened: list[asyncpg.Connection] = []
    impatience = {"deadlock_timeout": f"{DEADLOCK_TIMEOUT_S * 1000:.0f}ms"}
    try:
        for name in ("gatekeeper", *names):
            settings = {"application_name": name, **impatience}
            opened.append(await asyncpg.connect(dsn, server_settings=settings))  # closed if one fails
        await opened[0].execute(STAGE_SQL)
        actors = [Actor(name, connection) for name, connection in zip(names, opened[1:], strict=True)]
        yield Stage(opened[0], actors)
    finally:
        for connection in opened:
            await close(connection)
