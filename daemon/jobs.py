"""Long operations that survive their process: rows of outbox.job, and what `recalcd job` does to them."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import asyncpg

from daemon.database import transaction
from daemon.errors import UsageError
from daemon.keys import Topic
from daemon.scope import Scope
from daemon.sql import statement

CREATE_JOB = statement("create_job")
LIST_JOBS = statement("list_jobs")
CHANGE_JOB = statement("change_job")
END_JOB = statement("end_job")
HOLD_JOB = statement("hold_job")
RELEASE_JOB = statement("release_job")
MEASURE_RECALCULATIONS = statement("measure_recalculations")
MOST_ENDED = 20
PATIENCE_S = 5.0
"""How long a killed process's backend may take to notice: until the statement in hand is done, usually milliseconds."""
_LOOK_S = 0.05
_MOST_JOB_ID = 2**31 - 1

Kind = Literal["backfill", "replay"]
State = Literal["running", "paused", "finished", "cancelled"]
Status = Literal["running", "paused", "interrupted", "finished", "cancelled"]


@dataclass(frozen=True, slots=True)
class Job:
    """A row of outbox.job, whose comments explain it."""

    job_id: int
    kind: Kind
    topic: str
    part: dict[str, object]
    is_named: bool
    state: State
    cursor: str | None
    key_count: int
    done_count: int
    changed_count: int
    skipped_count: int
    failed_count: int
    chunk_keys: int
    rate_limit: float | None
    keys_per_s: float | None
    error: str | None
    created_at: datetime
    advanced_at: datetime | None
    ended_at: datetime | None
    is_held: bool
    """Whether a process runs it."""

    @property
    def status(self) -> Status:
        """The state; interrupted when it should run and nobody runs it."""
        return "interrupted" if self.state == "running" and not self.is_held else self.state

    @property
    def left_s(self) -> float | None:
        """How long it will take at the speed it has; None when that is not known, or it has ended."""
        if self.ended_at is not None or not self.keys_per_s:
            return None
        return max(0, self.key_count - self.done_count) / self.keys_per_s

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints."""
        return asdict(self) | {"status": self.status, "left_s": self.left_s}


async def create(
    connection: asyncpg.Connection,
    kind: Kind,
    topic: Topic,
    scope: Scope,
    *,
    key_count: int,
    chunk_keys: int,
    rate_limit: float | None = None,
) -> Job:
    """Create a job; nobody runs it yet."""
    job_id = await connection.fetchval(
        CREATE_JOB, kind, topic.name, json.dumps(scope.part), scope.named, key_count, chunk_keys, rate_limit
    )
    return await find(connection, job_id)


async def find(connection: asyncpg.Connection, job_id: int) -> Job:
    """Return a job. Raises UsageError when there is none."""
    rows = await connection.fetch(LIST_JOBS, job_id, 0) if job_id <= _MOST_JOB_ID else []
    if not rows:
        raise UsageError(f"There is no job {job_id}; see `recalcd job list`.")
    return _job(rows[0])


async def list_jobs(connection: asyncpg.Connection) -> list[Job]:
    """Return all jobs that have not ended, and the latest of those that have."""
    return [_job(row) for row in await connection.fetch(LIST_JOBS, None, MOST_ENDED)]


async def change(connection: asyncpg.Connection, job_id: int, state: State, *, dry_run: bool = False) -> Job:
    """Pause, resume or cancel a job; return it as it was. Raises UsageError when there is none, or it has ended."""
    job = await find(connection, job_id)
    if job.ended_at is None and (dry_run or await _change(connection, job_id, state)):
        return job
    ended = await find(connection, job_id)
    raise UsageError(f"Job {job_id} is {ended.state}: there is nothing left to pause, resume or cancel.")


async def _change(connection: asyncpg.Connection, job_id: int, state: State) -> bool:
    """Change the state of a job, unless it has ended. A cancelled one forgets its keys at once: nobody else would."""
    async with transaction(connection):
        if not await connection.fetchval(CHANGE_JOB, job_id, state):
            return False
        if state == "cancelled":
            await connection.execute(END_JOB, job_id)
        return True


@contextlib.asynccontextmanager
async def holding(
    connection: asyncpg.Connection, job_id: int, *, patience_s: float = PATIENCE_S
) -> AsyncIterator[bool]:
    """Be the one that runs the job while the block runs; yields whether we are. Waits for a killed one to be gone.

    A block that fails leaves the job to the session, whose end is near.
    """
    is_held = await _hold(connection, job_id, time.monotonic() + patience_s)
    yield is_held
    if is_held:
        await connection.execute(RELEASE_JOB, job_id)


async def _hold(connection: asyncpg.Connection, job_id: int, deadline: float) -> bool:
    while True:
        if await connection.fetchval(HOLD_JOB, job_id):
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_LOOK_S)


async def measure(connection: asyncpg.Connection, topic: Topic) -> float | None:
    """Tell how many seconds the recalculation of a key takes, by the history; None when it tells nothing."""
    measured: float | None = await connection.fetchval(MEASURE_RECALCULATIONS, topic.name)
    return measured


def _job(row: asyncpg.Record) -> Job:
    return Job(**dict(row) | {"part": json.loads(row["part"])})
