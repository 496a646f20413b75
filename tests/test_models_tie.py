"""The steps of the models are the statements of the code, in their order: who reorders one, must think about the other.

The models' programs are put together here from what the shipped routines say and from what the daemon sends.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from engine import LIVE, impatient, make_ledger, record, run_at_once
from test_models import SHIPPED

from daemon.batch import NO_LIMIT, RECALCULATE, SETTLE, TIDY_SESSION, UNLOCK_SESSION
from daemon.claim import CLAIM
from daemon.doorbell import ARM, LOOK, Activity, Alarm, Doorbell
from daemon.hints import Hints
from daemon.one_statement import RUN_BATCH
from daemon.settings import Settings
from daemon.sql import SQL_ROOT

Step = tuple[str, ...]

MODEL: dict[str, Step] = {
    "look": ("snap", "look"),
    "let go": ("let go",),
    "try lock": ("try lock",),
    "take": ("snap", "take"),
    "recalculate": ("snap", "read", "write"),
    "commit": ("commit",),
}
"""What each statement is in the model: one that reads takes its snapshot first."""

CLAIM_STATEMENTS = {
    "take what is free": r"select e\.ctid from outbox\.event as e\s.*for update skip locked",
    "look": r"from outbox\.event as e\s.*for update skip locked|from outbox\.list_head\(",
    "let go": r"raise exception using errcode = 'RC019'",
    "take": r"delete from outbox\.event as e\s.*and e\.key = any \(p_keys\)|from outbox\.take_events\(",
    "claim keys": r"from outbox\.claim_keys\(",
    "try lock": r"where pg_try_advisory_xact_lock\(outbox\.key_lock_id\(",
}
"""The first pattern that a statement holds names it."""
BATCH_STATEMENTS = {
    "claim": r"from outbox\.claim\(",
    "recalculate": r":= outbox\.recalculate\(",
    "settle": r"perform outbox\.settle\(",
}
RING_STATEMENTS = {
    "insert": r"insert into outbox\.event",
    "ring": r"perform outbox\.ring\(",
    "hold": r"if not pg_try_advisory_xact_lock_shared\(29283, 1\)",
    "notify": r"perform pg_notify\('outbox'",
}


def bodies(routine: str) -> list[str]:
    """Return what stands between the dollars of a shipped routine, one for every overload, without comments."""
    text = (SQL_ROOT / "routines" / routine.split(".", maxsplit=1)[0] / f"{routine}.sql").read_text("utf-8")
    return re.findall(r"\$\$(.*?)\$\$", re.sub(r"--[^\n]*", "", text), re.DOTALL)


def named(body: str, names: dict[str, str]) -> list[str]:
    """Return the names of a body's statements, in their order; statements without a name do not matter to the model.

    An else that does the same in another way is no step of its own.
    """
    found: list[str] = []
    for text in re.split(r";|\bthen\b", body):
        name = [name for name, pattern in names.items() if re.search(pattern, text, re.DOTALL)][:1]
        if not (re.match(r"\s*else\b", text) and name == found[-1:]):
            found += name
    return found


class Recording:
    """A connection that writes down what is sent; `meanwhile` is called before each statement."""

    def __init__(self, connection: asyncpg.Connection, meanwhile: Callable[[str], None] = lambda _: None) -> None:
        self._connection = connection
        self._meanwhile = meanwhile
        self.sent: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Awaitable[Any]] = getattr(self._connection, name)
        if name not in ("execute", "fetch", "fetchrow", "fetchval"):
            return method

        async def send(query: str, *arguments: object) -> Any:
            self._meanwhile(query)
            self.sent.append(query)
            return await method(query, *arguments)

        return send


async def statements_of_a_batch(db: asyncpg.Connection) -> list[str]:
    """Run a batch step by step; return its statements."""
    recording: Any = Recording(db)
    assert await LIVE.next_batch(recording, {}, after="", retries_first=False)
    names = {CLAIM: "claim", RECALCULATE: "recalculate", SETTLE: "settle", "commit": "commit"}
    begin, *sent = recording.sent
    assert begin == f"begin isolation level read committed{NO_LIMIT}"
    return [names[query.removesuffix(f"; {TIDY_SESSION}{UNLOCK_SESSION}")] for query in sent]


async def statements_of_a_batch_at_once(db: asyncpg.Connection) -> list[str]:
    """Run a batch in one statement, which commits by itself; return the statements inside."""
    recording: Any = Recording(db)
    limit = "set statement_timeout = '30s'"
    assert await run_at_once(recording)
    tidying = f"{TIDY_SESSION}{UNLOCK_SESSION}; {limit}"
    assert recording.sent == [RUN_BATCH, limit, RUN_BATCH, tidying]  # the first one only asks for the limit
    (body,) = bodies("outbox.run_batch")
    return [*named(body, BATCH_STATEMENTS), "commit"]


def program_of(statements: list[str]) -> tuple[str, ...]:
    """Return the steps of the model that a batch's statements are."""
    claim, claim_keys, look, take = (
        named(body, CLAIM_STATEMENTS)
        for routine in ("claim", "claim_keys", "list_head", "take_events")
        for body in bodies(f"outbox.{routine}")
    )
    assert (look, take) == (["look"], ["take"])
    assert claim == ["look", "let go", "claim keys", "claim keys"]  # the second time for others, when it got none
    assert claim_keys == ["try lock", "take", "take what is free"]  # where somebody keeps an event locked
    inner = {"claim": ["look", "let go", "try lock", "take"], "settle": []}
    parts = [part for each in statements for part in inner.get(each, [each])]
    return tuple(step for each in parts for step in MODEL[each])


@pytest.mark.parametrize("statements", [statements_of_a_batch, statements_of_a_batch_at_once])
async def test_the_model_of_the_claim_has_the_steps_that_a_batch_has(
    db: asyncpg.Connection, statements: Callable[[asyncpg.Connection], Awaitable[list[str]]]
) -> None:
    await make_ledger(db)
    await record(db, "k")
    assert program_of(await statements(db)) == SHIPPED


def test_the_shipped_recalculation_locks_in_a_statement_before_the_one_that_reads_and_writes() -> None:
    (body,) = bodies("reports.recalculate_students")
    statements = {
        "lock": r"perform outbox\.lock_keys\(",
        "read and write": r"reports\.standings\(.*insert into reports\.",
    }
    assert named(body, statements) == ["lock", "read and write"]


def test_writers_insert_first_then_ring_and_hold_on_to_their_silence() -> None:
    for body in bodies("outbox.enqueue"):
        assert named(body, RING_STATEMENTS) == ["insert", "ring"]
    (ring,) = bodies("outbox.ring")
    assert named(ring, RING_STATEMENTS) == ["hold", "notify"]


async def test_the_model_of_the_bell_has_the_steps_that_a_daemon_has(
    db: asyncpg.Connection, settings: Settings
) -> None:
    """Clear the flag, arm, look once more: a ring between arming and lying down is kept."""
    doorbell = Doorbell(impatient(settings), uuid4(), Alarm(), Activity(linger_s=0), Hints(1))
    seen = []

    def ring(query: str) -> None:
        seen.append(doorbell._rung.is_set())
        if query == ARM:
            doorbell._rung.set()

    doorbell._rung.set()
    recording: Any = Recording(db, ring)
    assert await doorbell._fall_asleep(recording)
    assert recording.sent == [ARM, LOOK]
    assert seen == [False, True]
    assert doorbell._rung.is_set()
    assert await doorbell._fall_asleep(recording)  # still armed
    assert recording.sent == [ARM, LOOK, LOOK]


def test_arming_takes_a_session_lock_that_is_never_waited_for() -> None:
    (arm,) = bodies("outbox.arm")
    assert named(arm, {"arm": r"if pg_try_advisory_lock\(29283, 1\)", "guarded": r"from pg_locks"}) == [
        "arm",
        "guarded",
    ]
