"""The applications of a soak: they write, and remember what was acknowledged."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import asyncpg
from engine import record
from histories import write
from school import School

from daemon.database import DATABASE_ERRORS
from soak.stage import ACCOUNTS, FRAGILE, FRAGILE_KEYS, Stage

Kind = Callable[[asyncpg.Connection, random.Random], Awaitable[None]]

PAUSE_S = 0.1
"""Mean pause of a writer between two writes."""

SCHOOL_WRITES = [
    *["record_feedback"] * 12, *["retract_feedback"] * 2, "join_group", "leave_group", "move_cohort",
    "set_assignment", "edit_assignment", "delete_assignment", "edit_unit",
]  # fmt: skip
"""The school stays as large as it is."""


@dataclass
class Writers:
    """Eight at once: five teachers, two book-keepers, and one who writes what may be poisoned."""

    stage: Stage
    count: int = 0
    """Writes that were acknowledged."""
    refused_count: int = 0
    amounts: set[int] = field(default_factory=set)
    """Each entry of the ledger has another."""
    fragile: dict[str, int] = field(default_factory=dict)
    _next_amount: int = 0

    async def run(self) -> None:
        """Write for ever."""
        kinds = [self._teach] * 5 + [self._keep_books] * 2 + [self._write_fragile]
        async with asyncio.TaskGroup() as group:
            for number, kind in enumerate(kinds):
                group.create_task(self._keep_at(kind, random.Random(f"writer {number} of {self.stage.seed}")))

    async def _keep_at(self, kind: Kind, chance: random.Random) -> None:
        """Reconnect for ever: what is wrong with the server meanwhile is the faults' doing."""
        while True:
            try:
                async with self.stage.session("writer") as db:
                    while True:
                        await kind(db, chance)
                        await asyncio.sleep(chance.expovariate(1 / PAUSE_S))
            except DATABASE_ERRORS:
                self.refused_count += 1
                await asyncio.sleep(0.2)

    async def _teach(self, db: asyncpg.Connection, chance: random.Random) -> None:
        if await write(School(db), chance.randrange, SCHOOL_WRITES) is None:
            self.count += 1

    async def _keep_books(self, db: asyncpg.Connection, chance: random.Random) -> None:
        """Record some entries in one transaction, now and then taken back."""
        self._next_amount += 10
        amounts = range(self._next_amount, self._next_amount + chance.randint(1, 3))
        transaction = db.transaction()
        await transaction.start()
        for amount in amounts:
            await record(db, chance.choice(ACCOUNTS), amount)
        if chance.random() < 0.1:
            await transaction.rollback()
            return
        await transaction.commit()
        self.amounts.update(amounts)
        self.count += 1

    async def _write_fragile(self, db: asyncpg.Connection, chance: random.Random) -> None:
        key = chance.choice(FRAGILE_KEYS)
        async with db.transaction():
            value = await db.fetchval("update fragile.source set value = value + 1 where key = $1 returning value", key)
            await db.execute("select outbox.enqueue($1, $2)", FRAGILE, key)
        self.fragile[key] = value
        self.count += 1

    async def missing(self, db: asyncpg.Connection) -> int:
        """Count the acknowledged writes that the database does not have."""
        amounts = {row["amount"] for row in await db.fetch("select amount from ledger.entry")}
        values = {row["key"]: row["value"] for row in await db.fetch("select key, value from fragile.source")}
        stale = sum(1 for key, value in self.fragile.items() if values[key] < value)
        return len(self.amounts - amounts) + stale
