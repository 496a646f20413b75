"""`recalcd verify`: find cached rows that are not what a recalculation would produce now."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import asyncpg

from daemon import missed, telemetry
from daemon.batch import CallFailed, Recalculation, prepare_history
from daemon.database import sqlstate_of
from daemon.difference import Difference
from daemon.drift import find_drift
from daemon.errors import Blame, UsageError, blame
from daemon.keys import Topic, pages
from daemon.missed import Written
from daemon.redaction import error_facts
from daemon.telemetry import log

PAGE_KEYS = 100
"""Most keys that are looked at together: a live event of one of them waits that long."""
BUSY_PASSES = 50
BUSY_PAUSE_S = 0.1
_NO_CHANGES_TOLD = "RC009"


@dataclass
class Verdict:
    """What was found. A key is in at most one of drifted, failed and left_out."""

    checked_count: int = 0
    drifted: list[str] = field(default_factory=list)
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    """What is wrong with the drifted keys, if the topic has a describe function."""
    missed: dict[str, list[Written]] = field(default_factory=dict)
    """Rows of the source, younger than the report of a drifted key: whoever wrote them forgot the outbox."""
    repaired: list[str] = field(default_factory=list)
    failed: dict[str, asyncpg.PostgresError] = field(default_factory=dict)
    """Keys whose recalculation raised an error. What the operator is shown of it is not for the log."""
    left_out: list[str] = field(default_factory=list)
    """Keys that owe a failed recalculation, or stayed busy: not up to date, and nobody says they were."""

    @property
    def is_good(self) -> bool:
        """Whether nothing drifted and everything could be looked at."""
        return not (self.drifted or self.failed)

    def failures(self) -> dict[str, str]:
        """Say of each key that failed what the database said, which nobody keeps: row values and all."""
        return {key: f"{error.args[0]} ({sqlstate_of(error)})" for key, error in self.failed.items()}

    def as_json(self) -> dict[str, object]:
        """Return what --json prints; its keys are public."""
        return {
            "checked_count": self.checked_count,
            "drifted": self.drifted,
            "differences": {key: [each.as_json() for each in found] for key, found in self.differences.items()},
            "missed": {key: [asdict(each) for each in found] for key, found in self.missed.items()},
            "repaired": self.repaired,
            "failed": self.failures(),
            "left_out": self.left_out,
        }


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

    def __post_init__(self) -> None:
        """Look at less at once than a batch may hold."""
        self.topic = replace(self.topic, batch_keys=min(self.topic.batch_keys, PAGE_KEYS))

    async def run(self, named: Sequence[str] | None = None, *, sample: int | None = None) -> Verdict:
        """Verify the named keys, or (None) all that the topic lists, or a random sample of those."""
        log.info(telemetry.VERIFY_STARTED, topic=self.topic.name, repair=self.repair)
        if sample is not None:
            everything = [key async for page in pages(self.connection, self.topic, named or ()) for key in page]
            named = random.sample(everything, min(sample, len(everything)))
        busy: list[str] = []
        if named is None or named:
            async for page in pages(self.connection, self.topic, named or ()):
                busy += await self.check(page)
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
            busy = [key for part in parts for key in await self.check(part)]
        return busy

    async def check(self, keys: list[str]) -> list[str]:
        """Check some keys, at most a batch of them; return those that could not be looked at."""
        try:
            finding = await find_drift(self.connection, self.topic, keys)
        except asyncpg.PostgresError as error:
            return await self._find_culprits(keys, error)
        if finding.drifted:
            self.verdict.differences |= finding.differences
            await self._note_drift(finding.drifted)
        self.verdict.checked_count += len(finding.checked)
        self.advanced(len(finding.checked))
        return sorted(set(keys) - set(finding.checked))

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
            self.verdict.failed[keys[0]] = error
            self.advanced(1)
            return []
        middle = len(keys) // 2
        return await self.check(keys[:middle]) + await self.check(keys[middle:])

    async def _note_drift(self, drifted: list[str]) -> None:
        self.verdict.drifted += drifted
        log.error(telemetry.VERIFY_DRIFTED, topic=self.topic.name, key_count=len(drifted), keys=drifted[:10])
        if self.topic.name == missed.TOPIC:  # before a repair makes the report the younger
            self.verdict.missed |= await missed.find_missed(self.connection, drifted)
        if self.repair:
            await self._repair(drifted)

    async def _repair(self, drifted: list[str]) -> None:
        if self.keep_history:
            await prepare_history(self.connection, days_ahead=1)
        recalculation = Recalculation(daemon_id=None, kind="repair", keep_history=self.keep_history)
        try:
            batch = await recalculation.named_keys(self.connection, self.topic.name, drifted)
        except CallFailed as failure:
            raise failure.error from None
        self.verdict.repaired += batch.claim.keys
