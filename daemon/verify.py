"""`recalcd verify`: find cached rows that are not what a recalculation would produce now."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import asyncpg

from daemon import telemetry
from daemon.batch import CallFailed, Recalculation, prepare_history
from daemon.database import one_row, rehearsal, sqlstate_of
from daemon.errors import Blame, UsageError, blame
from daemon.keys import Topic, pages
from daemon.redaction import error_facts
from daemon.sql import statement
from daemon.telemetry import log, span

FIND_DRIFT = statement("find_drift")
BUSY_PASSES = 50
BUSY_PAUSE_S = 0.1
_NO_CHANGES_TOLD = "RC009"


@dataclass
class Verdict:
    """What was found. A key is in at most one of the lists."""

    checked_count: int = 0
    drifted: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Keys whose recalculation raised an error, and its message."""
    left_out: list[str] = field(default_factory=list)
    """Keys that owe a failed recalculation, or stayed busy: not up to date, and nobody says they were."""

    @property
    def is_good(self) -> bool:
        """Whether nothing drifted and everything could be looked at."""
        return not (self.drifted or self.failed)


@dataclass
class Verifier:
    """Looks at keys, a page at a time, beside live traffic: it waits for nobody, and others wait a page at most."""

    connection: asyncpg.Connection
    topic: Topic
    repair: bool = False
    keep_history: bool = True
    advanced: Callable[[int], None] = lambda _: None
    """Told of every number of keys that are done."""
    verdict: Verdict = field(default_factory=Verdict)

    async def run(self, named: Sequence[str] = (), *, sample: int | None = None) -> Verdict:
        """Verify the named keys, or all that the topic lists, or a random sample of those."""
        log.info(telemetry.VERIFY_STARTED, topic=self.topic.name, repair=self.repair)
        if sample is not None:
            everything = [key async for page in pages(self.connection, self.topic, named) for key in page]
            named = random.sample(everything, min(sample, len(everything)))
        busy: list[str] = []
        if sample is None or named:
            async for page in pages(self.connection, self.topic, named):
                busy += await self._check(page)
        self.verdict.left_out = await self._check_again(busy)
        self.advanced(len(self.verdict.left_out))
        log.info(
            telemetry.VERIFY_FINISHED,
            topic=self.topic.name,
            checked_count=self.verdict.checked_count,
            drifted_count=len(self.verdict.drifted),
            failed_count=len(self.verdict.failed),
        )
        return self.verdict

    async def _check_again(self, busy: list[str]) -> list[str]:
        """Come back to keys that others were working on; return those that can't be judged."""
        for _ in range(BUSY_PASSES):
            if not busy:
                break
            await asyncio.sleep(BUSY_PAUSE_S)
            size = self.topic.batch_keys
            parts = [busy[start : start + size] for start in range(0, len(busy), size)]
            busy = [key for part in parts for key in await self._check(part)]
        return busy

    async def _check(self, keys: list[str]) -> list[str]:
        """Check some keys; return those that could not be looked at."""
        try:
            checked, drifted = await self._find_drift(keys)
        except asyncpg.PostgresError as error:
            return await self._find_culprits(keys, error)
        if drifted:
            await self._note_drift(drifted)
        self.verdict.checked_count += len(checked)
        self.advanced(len(checked))
        return sorted(set(keys) - set(checked))

    async def _find_drift(self, keys: list[str]) -> tuple[list[str], list[str]]:
        with span(f"verify.{self.topic.name}", "outbox.find_drift", key_count=len(keys)) as current:
            async with rehearsal(self.connection):
                row = await one_row(self.connection, FIND_DRIFT, self.topic.name, keys)
            current.add(checked_count=len(row["checked_keys"]), drifted_count=len(row["drifted_keys"]))
        return row["checked_keys"], row["drifted_keys"]

    async def _find_culprits(self, keys: list[str], error: asyncpg.PostgresError) -> list[str]:
        """Halve until the keys whose recalculation fails are alone. Raises what is no key's fault."""
        sqlstate = sqlstate_of(error)
        if sqlstate == _NO_CHANGES_TOLD:
            raise UsageError(f"{error_facts(error).message}. {error.hint}") from None
        match blame(sqlstate):
            case Blame.SERVER | Blame.TOPIC:
                raise error
            case Blame.CONTENTION:
                return keys
        if len(keys) == 1:
            self.verdict.failed[keys[0]] = f"{error_facts(error).message} ({sqlstate})"
            self.advanced(1)
            return []
        middle = len(keys) // 2
        return await self._check(keys[:middle]) + await self._check(keys[middle:])

    async def _note_drift(self, drifted: list[str]) -> None:
        self.verdict.drifted += drifted
        log.error(telemetry.VERIFY_DRIFTED, topic=self.topic.name, key_count=len(drifted), keys=drifted[:10])
        if self.repair:
            if self.keep_history:
                await prepare_history(self.connection, days_ahead=1)
            recalculation = Recalculation(daemon_id=None, kind="repair", keep_history=self.keep_history)
            try:
                batch = await recalculation.named_keys(self.connection, self.topic.name, drifted)
            except CallFailed as failure:
                raise failure.error from None
            self.verdict.repaired += batch.claim.keys
