"""What doctor looks at in the topics: events nobody will ever do, pauses, and procedures that break the contract."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from daemon.database import one_row, rehearsal, sqlstate_of
from daemon.doctor_check import Check, Complaint, Complaints, Patient, error, warning
from daemon.errors import Blame, blame
from daemon.failures import find_failure
from daemon.keys import LIST_KEYS, Topic, find_topic, pages
from daemon.redaction import error_facts
from daemon.sql import statement
from daemon.status import read_status
from daemon.topics import list_topics

DOCTOR_PROCEDURE = statement("doctor_procedure")
DOCTOR_KNOWN_KEY = statement("doctor_known_key")
DOCTOR_HOLDS_KEY = statement("doctor_holds_key")
DOCTOR_ROWS_WRITTEN = statement("doctor_rows_written")
LIMIT_STATEMENTS = statement("limit_statements")
RECALCULATE = statement("recalculate")
BUSY_S = 2
_CONTRACT = "See outbox.set_topic, and `Your own table` in the README."


async def check_events(patient: Patient) -> Complaints:
    """Look for events of topics that nobody registered."""
    for topic in (await read_status(patient.connection, patient.limits)).topics:
        if not topic.is_registered:
            yield error(
                f"{topic.pending_events:,} events name topic {topic.topic}, which nobody registered",
                f"recalcd topic add {topic.topic} --recalculate SCHEMA.NAME, or delete them from outbox.event; and let "
                "the writer use outbox.enqueue, which refuses such names.",
            )


async def check_pauses(patient: Patient) -> Complaints:
    """Look for topics that somebody paused and may have forgotten."""
    for topic in await list_topics(patient.connection):
        if topic.paused_at:
            reason = f" ({topic.paused_reason})" if topic.paused_reason else ""
            yield warning(
                f"topic {topic.topic} is paused since {topic.paused_at:%Y-%m-%d %H:%M:%S} UTC{reason}",
                f"When the reason is gone: recalcd topic resume {topic.topic}.",
            )


async def check_procedures(patient: Patient) -> Complaints:
    """See that every topic's routine can be called and keeps the contract; tries a key, and takes that back."""
    for entry in await list_topics(patient.connection):
        found = await one_row(patient.connection, DOCTOR_PROCEDURE, entry.topic)
        if not found["exists"]:
            yield error(
                f"topic {entry.topic}: there is no routine {entry.recalculate} of a signature that serves", _CONTRACT
            )
        elif not found["is_allowed"]:
            yield error(
                f"topic {entry.topic}: this role may not call {entry.recalculate}",
                f"grant execute on routine {entry.recalculate} to the role that runs the daemon;",
            )
        else:
            schema = entry.recalculate.partition(".")[0]
            for login in found["refused"]:
                yield error(
                    f"topic {entry.topic}: the daemon's login {login} may not call {entry.recalculate}",
                    f"grant usage on schema {schema} to recalcd_daemon; grant execute on routine {entry.recalculate} "
                    "to recalcd_daemon; and what it reads and writes, unless it is security definer.",
                )
            if not found["reports"]:
                yield warning(
                    f"topic {entry.topic}: {entry.recalculate} does not say what it changed: drift can't be found",
                    "Give it the signature (in p_keys text[], inout p_changed_keys text[]).",
                )
            topic = await find_topic(patient.connection, entry.topic)
            async for complaint in _try_one(patient.connection, topic):
                yield complaint
            if unlisted := await _unlisted_key(patient.connection, topic):
                yield warning(
                    f"topic {entry.topic}: its function lists no keys, though {unlisted} was recalculated lately",
                    "verify and backfill see none, either. p_after is null for the first page: let it list all then.",
                )


async def _try_one(connection: asyncpg.Connection, topic: Topic) -> AsyncIterator[Complaint]:
    key = await _some_key(connection, topic)
    if key is None:
        return  # nothing to try it on: an empty table, or a topic that never ran
    try:
        trial = await _try(connection, topic.name, key)
    except asyncpg.PostgresError as reason:
        if blame(sqlstate_of(reason)) is Blame.CONTENTION:
            yield warning(f"topic {topic.name}: key {key} is busy, so the procedure was not tried", "Try again later.")
            return
        if blame(sqlstate_of(reason)) is Blame.SERVER:
            raise
        facts = error_facts(reason)
        yield error(
            f"topic {topic.name}: recalculating key {key} fails: {facts.message} ({facts.sqlstate})",
            f"Mend the procedure; recalcd failures list {topic.name} shows whom it concerns.",
        )
        return
    for complaint in trial.complaints(topic.name):
        yield complaint


async def _some_key(connection: asyncpg.Connection, topic: Topic) -> str | None:
    """Return a key that owes nothing."""
    if not topic.lists_keys:
        key: str | None = await connection.fetchval(DOCTOR_KNOWN_KEY, topic.name)
        return key
    async for page in pages(connection, topic):
        for each in page:
            if await find_failure(connection, topic.name, each) is None:
                return each
        break
    return None


async def _unlisted_key(connection: asyncpg.Connection, topic: Topic) -> str | None:
    """Return a key that was recalculated, where the topic's function lists none at all."""
    if not topic.lists_keys or await connection.fetch(LIST_KEYS, topic.name, None, 1):
        return None
    key: str | None = await connection.fetchval(DOCTOR_KNOWN_KEY, topic.name)
    return key


@dataclass(frozen=True, slots=True)
class Trial:
    """What recalculating a key twice in a row brought."""

    key: str
    holds_lock: bool
    changed_again: bool
    written_again: int

    def complaints(self, topic: str) -> list[Complaint]:
        """Say which parts of the contract are broken."""
        found = []
        if not self.holds_lock:
            found.append(
                warning(
                    f"topic {topic}: the procedure locks no keys: a CALL by hand can overwrite newer results",
                    f"Let its first statement be: perform outbox.lock_keys('{topic}', p_keys);",
                )
            )
        if self.changed_again:
            found.append(
                error(
                    f"topic {topic}: the procedure changes key {self.key} again right after it was recalculated, so "
                    "verify finds drift for ever",
                    "Let it write only what `is distinct from` the cached row, and leave out times of calculation.",
                )
            )
        elif self.written_again:
            found.append(
                warning(
                    f"topic {topic}: the procedure writes {self.written_again:,} rows for the clean key {self.key}",
                    "Let it write only what `is distinct from` the cached row: the rest is bloat.",
                )
            )
        return found


async def _try(connection: asyncpg.Connection, topic: str, key: str) -> Trial:
    async with rehearsal(connection):
        await connection.execute(LIMIT_STATEMENTS, topic)
        await connection.execute(f"set local lock_timeout = '{BUSY_S}s'")
        await connection.fetchval(RECALCULATE, topic, [key])
        holds_lock = await connection.fetchval(DOCTOR_HOLDS_KEY, topic, key)
        before = await connection.fetchval(DOCTOR_ROWS_WRITTEN)
        changed = await connection.fetchval(RECALCULATE, topic, [key])
        return Trial(key, holds_lock, bool(changed), await connection.fetchval(DOCTOR_ROWS_WRITTEN) - before)


TOPIC_CHECKS = (
    Check("events", check_events, "every event has a topic that is registered"),
    Check("pauses", check_pauses, "no topic is paused"),
    Check("procedures", check_procedures, "all can be called and keep the contract, as far as one key shows"),
)
