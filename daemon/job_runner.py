"""Runs a job, chunk by chunk: lets live events go first, keeps to the rate, and heeds pause and cancel."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import asyncpg

from daemon import telemetry
from daemon.database import DATABASE_ERRORS, one_row
from daemon.jobs import END_JOB, Job, find
from daemon.keys import Topic
from daemon.pace import Pace
from daemon.redaction import error_facts
from daemon.sql import statement
from daemon.telemetry import log, span

BEGIN_JOB = statement("begin_job")
WATCH_JOB = statement("watch_job")
LIST_JOB_KEYS = statement("list_job_keys")
ADVANCE_JOB = statement("advance_job")
NOTE_JOB_ERROR = statement("note_job_error")
LOOK_S = 0.1
"""How soon a pause that ends, or live events that are done, are noticed."""

WORKING, PAUSED, YIELDING, THROTTLED = "working", "paused", "yielding to live events", "keeping to the rate"


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next keys of a job, in its order."""

    keys: list[str]
    pending: frozenset[str]
    """Those that the daemon will do anyway."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a chunk's keys; what is in none of these was found clean."""

    changed: int = 0
    skipped: int = 0
    failed: int = 0


Note = Callable[[Counts], Awaitable[None]]
"""Moves the cursor behind the chunk; to be called once, in the transaction that does the chunk."""


class Step(Protocol):
    """What a job does to a chunk."""

    async def do(self, chunk: Chunk, note: Note) -> None: ...


@dataclass
class JobRunner:
    """Runs one job to its end, or to its cancellation. The caller holds the job."""

    connection: asyncpg.Connection
    job: Job
    step: Step
    pace: Pace
    live_wait_s: float
    """How long live events may wait before the job lets them go first."""
    advanced: Callable[[int], None] = lambda _: None
    """Told of every number of keys that are done."""
    doing: Callable[[str], None] = lambda _: None
    """Told what it does: WORKING, or what it waits for."""

    async def run(self) -> Job:
        """Go on behind the cursor; return the job as it ended. What it raises is noted with the job, for others."""
        log.info(telemetry.JOB_STARTED, **self._facts(), done_count=self.job.done_count)
        try:
            await self.connection.execute(BEGIN_JOB, self.job.job_id)
            while await self._may_go_on():
                await self._advance()
        except Exception as error:
            with contextlib.suppress(*DATABASE_ERRORS):  # the error itself is on its way to whoever runs us
                await self.connection.execute(NOTE_JOB_ERROR, self.job.job_id, error_facts(error).message)
            raise
        ended = await find(self.connection, self.job.job_id)
        counts = {f"{what}_count": getattr(ended, f"{what}_count") for what in ("done", "changed", "skipped", "failed")}
        log.info(telemetry.JOB_ENDED, **self._facts(), state=ended.state, **counts)
        return ended

    def _facts(self) -> dict[str, object]:
        return {"job_id": self.job.job_id, "kind": self.job.kind, "topic": self.job.topic}

    async def _may_go_on(self) -> bool:
        """Wait while the job is paused, live events wait, or the rate says so; false when it has ended."""
        while True:
            watch = await one_row(self.connection, WATCH_JOB, self.job.job_id, self.live_wait_s)
            throttle_s = self.pace.wait_s(time.monotonic())
            match watch["state"]:
                case "paused":
                    self.pace.rest()
                    await self._wait(PAUSED, LOOK_S)
                case "running" if watch["is_behind"]:
                    await self._wait(YIELDING, LOOK_S)
                case "running" if throttle_s > 0:
                    await self._wait(THROTTLED, min(throttle_s, LOOK_S))
                case state:
                    return bool(state == "running")

    async def _wait(self, for_what: str, seconds: float) -> None:
        self.doing(for_what)
        await asyncio.sleep(seconds)

    async def _advance(self) -> None:
        """Do the next chunk; end the job when there is none."""
        self.doing(WORKING)
        rows = await self.connection.fetch(LIST_JOB_KEYS, self.job.job_id, self.pace.chunk_keys)
        if not rows:
            await self.connection.execute(END_JOB, self.job.job_id)
            return
        chunk = Chunk([row["key"] for row in rows], frozenset(row["key"] for row in rows if row["is_pending"]))
        started = time.monotonic()
        with span(f"{self.job.kind}.{self.job.topic}", type(self.step).__qualname__, key_count=len(rows)) as current:
            current.add(job_id=self.job.job_id, pending_count=len(chunk.pending))
            await self.step.do(chunk, self._note_of(chunk))
        self.pace.took(len(rows), started, time.monotonic())
        log.debug(telemetry.JOB_ADVANCED, **self._facts(), key_count=len(rows), next_key_count=self.pace.chunk_keys)
        self.advanced(len(rows))

    def _note_of(self, chunk: Chunk) -> Note:
        async def note(counts: Counts) -> None:
            await self.connection.execute(
                ADVANCE_JOB,
                self.job.job_id,
                chunk.keys[-1],
                len(chunk.keys),
                counts.changed,
                counts.skipped,
                counts.failed,
                self.pace.chunk_keys,
                self.pace.keys_per_s,
            )

        return note


def pace_of(job: Job, topic: Topic, target_s: float) -> Pace:
    """Go on at the pace the job had."""
    return Pace(target_s, topic.batch_keys, job.chunk_keys, job.rate_limit, job.keys_per_s)
