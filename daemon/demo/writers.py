"""The teachers of the demo: live writes through school.record_feedback, from several connections."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID

import asyncpg

from daemon.database import connection, one_row
from daemon.settings import Settings
from daemon.sql import statement

WORK = statement("demo_work")
WRITE = statement("demo_write")
CONNECTIONS = 4
BUSY_PUPILS = 5
BUSY_EVERY = 5
"""Every fifth write goes to one of the busy pupils."""
MOST_WORK = 20_000


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work that feedback can be given on."""

    student_id: UUID
    group_id: UUID
    group_name: str
    assignment_id: UUID
    is_busy: bool
    """Whether the pupil is one of the few whom many writes hit."""


async def choose_work(opened: asyncpg.Connection) -> list[Work]:
    """Return the busy pupils' work first, then others', at random; never more than MOST_WORK pieces."""
    return [Work(**row) for row in await opened.fetch(WORK, BUSY_PUPILS, MOST_WORK)]


def plan(work: Sequence[Work], count: int) -> Iterator[Work]:
    """Yield what to write, one after the other: the first of the busy pupils gets the first write."""
    busy = [each for each in work if each.is_busy]
    others = [each for each in work if not each.is_busy] or busy
    dice = random.Random(1)
    yield busy[0]
    for number in range(1, count):
        yield dice.choice(others if number % BUSY_EVERY else busy)


@dataclass(frozen=True, slots=True)
class Write:
    """A write that committed and enqueued its pupil."""

    xid: str
    key: str


@dataclass
class Writers:
    """An open loop: each write is due by the clock, whatever became of those before it; late ones are still done."""

    settings: Settings
    plan: Iterator[Work]
    rate_per_s: float
    done: list[Write] = field(default_factory=list)
    unchanged_count: int = 0
    """Writes that found everything as it was, and enqueued nobody."""
    failed: list[str] = field(default_factory=list)
    """What the database said."""
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """How many writes were made, one way or another."""
        return len(self.done) + self.unchanged_count + len(self.failed)

    async def run(self) -> None:
        """Write it all. Raises what connecting raises."""
        clock = asyncio.get_running_loop().time
        started = clock()
        due = ((started + number / self.rate_per_s, work) for number, work in enumerate(self.plan))
        writing = [asyncio.ensure_future(self._write_on_own_connection(due)) for _ in range(CONNECTIONS)]
        try:
            await asyncio.gather(*writing)
        finally:
            for each in writing:
                each.cancel()
            await asyncio.gather(*writing, return_exceptions=True)
        self.seconds = clock() - started

    async def _write_on_own_connection(self, due: Iterator[tuple[float, Work]]) -> None:
        clock = asyncio.get_running_loop().time
        async with connection(self.settings, application_name="recalcd demo teacher", read_write=True) as opened:
            for at, work in due:
                await asyncio.sleep(max(0.0, at - clock()))
                await self._write(opened, work)

    async def _write(self, opened: asyncpg.Connection, work: Work) -> None:
        score = Decimal(int(random.triangular(2_000, 10_000, 8_000))).scaleb(-4)
        try:
            row = await one_row(opened, WRITE, work.assignment_id, work.student_id, score)
        except asyncpg.PostgresConnectionError:
            raise  # nothing can be written any more
        except asyncpg.PostgresError as error:
            self.failed.append(str(error.args[0]))  # nobody to protect: the pupils are invented
            return
        if row["changed"]:
            self.done.append(Write(row["xid"], str(work.student_id)))
        else:
            self.unchanged_count += 1
