"""What keeps a report true: recalcd or a rival, each described by the same few facts, so that all are measured alike.

All share one database: the same school, the same procedure, the same writer. The writer is `school.record_feedback`,
which ends with `outbox.enqueue`; whoever has the turn has its own enqueue in that function's place. So every rival's
enqueue is a part of the writer's one statement, and none is charged the round trip that its client library would make.
"""

import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks.process import Daemon, daemon, program

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
INSTALLED = CHECKOUT / ".rivals"
PROGRAMS = HERE / "workers"

GOOD_ENDS = (0, -signal.SIGTERM)
"""Of a worker that is asked to stop: some take the signal for themselves when they are done, or not ready yet."""

HOW_TO_INSTALL = "the rivals are not installed: run benchmarks/rivals/install"

ONE = "(select 1 as position, p_key as key) as b"
"""What an enqueue in PL/pgSQL reads; p_key is the pupil."""
ALL = "(select b.position, b.key from bench.backlog as b order by b.position) as b"
"""What a bulk enqueue reads."""
ALL_DIFFERENT = "(select min(b.position) as position, b.key from bench.backlog as b group by b.key order by 1) as b"
"""The same for systems that de-duplicate, which then have one job a pupil whatever the number of events."""

REPORT = "reports.report_student_rollups"
RING = "perform outbox.ring(p_topic);"
NOTHING_WAITS = "from (select) as nothing where false"


@dataclass(frozen=True)
class System:
    """One contestant."""

    name: str
    enqueue: str | None
    """What the writer does, as PL/pgSQL statements; None: what recalcd ships, and its daemon is what works."""
    enqueue_all: str
    """SQL: the same for each row of bench.backlog, by the system's own bulk call where it has one."""
    left: str
    """What is not worked off yet: the SQL after `select count(*)`."""
    clear: str = ""
    """SQL: forget all jobs, the finished ones included."""
    setup: tuple[tuple[str, ...], ...] = ()
    """Commands that create the schema, once a database."""
    schema: str = ""
    """SQL to run after them, once a database."""
    starts_over: bool = False
    """Whether the commands run once a turn, `clear` having dropped what they made."""
    needs: Path | None = None
    """A file that benchmarks/rivals/install can not bring everywhere."""
    jobs: tuple[str, ...] = ()
    """The tables whose rows the planner should have counted after a bulk; none: the one that `left` reads."""
    worker: tuple[str, ...] = ()
    """The command that works, {connections} in it being their number; none: recalcd, or nothing to run."""
    processes: int = 1
    """How many of it run."""
    connections: int = 2
    """Of each, for the work alone."""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    report: str = REPORT
    """Where readers find the report."""
    views: tuple[str, ...] = ()
    """Materialized views to refresh before a turn."""
    ring: str = RING
    """What recalcd's enqueue does in the place of ringing its doorbell..."""
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    """...and the settings of its daemon, named like their fields."""
    calls_each: bool = True
    """Whether a call of the procedure is of one pupil."""
    dedupes: bool = False
    """Whether an enqueue may find that another event's job will do."""
    coalesces: bool = False
    """Whether whoever works recalculates a pupil once for all events at hand."""

    @property
    def has_daemon(self) -> bool:
        """Whether recalcd's daemon is what works."""
        return self.enqueue is None

    @property
    def sleeps_armed(self) -> bool:
        """Whether recalcd's daemon waits for its doorbell, rather than look by itself."""
        return self.has_daemon and self.settings.get("wake") != "poll"

    @property
    def analyze(self) -> str:
        """Return the SQL that has a bulk counted; without it the plans for it would be luck."""
        return f"analyze {', '.join(self.jobs or (self.left.split()[1],))}"

    def enqueue_from(self, table: str) -> str:
        """Return `enqueue_all` for a table like bench.backlog."""
        return self.enqueue_all.replace("bench.backlog", table)

    @asynccontextmanager
    async def working(self, dsn: str) -> AsyncIterator[Sequence[Daemon]]:
        """Run the workers while the block runs."""
        async with AsyncExitStack() as stack:
            if self.has_daemon:
                yield [await stack.enter_async_context(daemon(dsn, self.settings))]
                return
            command = [each.replace("{connections}", str(self.connections)) for each in self.worker]
            yield [
                await stack.enter_async_context(
                    program(command, self._surroundings(dsn), folder=PROGRAMS, good_ends=GOOD_ENDS)
                )
                for _ in range(self.processes if command else 0)
            ]

    async def install(self, dsn: str) -> None:
        """Create the schema."""
        for command in self.setup:
            async with program(command, self._surroundings(dsn), folder=PROGRAMS, ends=True) as running:
                await running.ended()

    def _surroundings(self, dsn: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "RECALCD_"))}
        facts = {"DATABASE_URL": dsn, "CONNECTIONS": str(self.connections), "NODE_HOME": str(INSTALLED)}
        return own | libpq(dsn) | facts | {"PYTHONPATH": str(PROGRAMS)} | dict(self.environment)


RECALCD = System(
    name="recalcd",
    enqueue=None,
    enqueue_all=f"insert into outbox.event (topic, key, reason) select 'reports.student', b.key, 'bench' from {ALL}",
    left="from outbox.event",
    clear="truncate outbox.event, outbox.failure, outbox.batch, outbox.daemon",
    calls_each=False,
    coalesces=True,
)


def libpq(dsn: str) -> dict[str, str]:
    """Return libpq's variables for a DSN of an embedded server; for programs that take no URI without a host."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    host, port = query["host"][0], query["port"][0]
    database = parts.path.removeprefix("/")
    return {
        "PGHOST": host,
        "PGPORT": port,
        "PGUSER": parts.username or "postgres",
        "PGDATABASE": database,
        "AWA_URL": f"postgresql://{parts.username}@localhost/{database}?{parts.query}",
    }


def python(name: str) -> str:
    """Return the path of a program of the rivals' virtual environment."""
    return str(INSTALLED / "venv" / "bin" / name)


def node() -> str:
    """Return the path of the rivals' own Node.js."""
    return str(next(iter((INSTALLED / "node_modules").glob("node-*/bin/node")), "node"))


def is_installed() -> bool:
    """Return whether benchmarks/rivals/install has run to its end."""
    return (INSTALLED / "complete").exists()
