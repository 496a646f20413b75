"""What the application pays: its writes a second, whatever keeps the reports true beside it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import Part, Row, Series, Verdict, interleaved
from benchmarks.pgbench import Load
from benchmarks.rivals import QUEUES, available, plain
from benchmarks.rivals.contest import WRITE, Contest, contest
from benchmarks.rivals.system import NOTHING_WAITS, RECALCD, System

STUDENTS = 10_000
CLIENTS = (1, 8, 32)
SECONDS = 2
"""Of writing, for each number of clients."""
COMMITS = {"as shipped": (0, 5), "1 ms commits": (1000, 0)}
"""commit_delay in microseconds, commit_siblings: what cloud disks do, and how to have it without one."""
NEAR_SILENT = 0.9
TIMES_NOTIFY = 8

PLAIN = System(name="plain feedback", enqueue="null;", enqueue_all="select", left=NOTHING_WAITS)
# Its daemon looks by itself: one that slept would leave the cores to the writers, of whom it does not hear.
SILENT = replace(RECALCD, name="outbox row, silent", ring="null;", settings={"wake": "poll"})
BELL = replace(RECALCD, name="recalcd: outbox row and doorbell")
NOTIFYING = replace(RECALCD, name="outbox row and NOTIFY", ring="perform pg_notify('outbox', p_topic);")

SCRIPT = f"""
\\set pupil random(0, :students - 1)
{WRITE.format(turn=":pupil")};
"""


@dataclass(frozen=True)
class Outcome:
    """Of one turn."""

    speeds: Mapping[int, float]
    """Writes a second of each number of clients."""
    left: int
    """Events or jobs, when the last client had ended."""


async def measure(bench: Bench) -> Part:
    """Write as fast as so many clients can, while each contestant works, in turns; under both commit settings."""
    # Writers do the same whether or not pg-boss has a handler of batches.
    rivals = [queue for queue in QUEUES if queue.calls_each or queue.coalesces]
    systems = [PLAIN, SILENT, BELL, NOTIFYING, *available((*rivals, plain.IN_THE_TRANSACTION), bench.beside)]
    students = bench.scaled(STUDENTS, least=100)
    async with contest(bench, systems, students) as ground:
        turns: dict[str, Callable[[], Awaitable[Outcome]]] = {
            f"{commits}, {system.name}": partial(_turn, ground, system, commits)
            for commits in COMMITS
            for system in systems
        }
        measured = await interleaved("writers", bench.rounds, turns)
    speeds = {
        _side(commits, clients, system): Series.of(
            "writes/s", (each.speeds[clients] for each in measured[f"{commits}, {system.name}"])
        )
        for commits in COMMITS
        for clients in CLIENTS
        for system in systems
    }
    return Part(
        name="writers",
        question="How many pieces of feedback a second get in, each in a transaction, while the reports are kept true?",
        how=f"pgbench, {_seconds(bench)} s for each number of clients in turn, after one in which its sessions"
        " are new; random pupils, each write one statement; workers running. Left: what was written and not"
        " yet worked off when the last client had ended.",
        rows=[
            *(_row(speeds, commits, clients, each) for commits in COMMITS for clients in CLIENTS for each in systems),
            *(
                Row(f"{name}: left", {"left": Series.of("events or jobs", (each.left for each in outcomes))})
                for name, outcomes in measured.items()
            ),
        ],
        verdicts=_verdicts(speeds),
    )


async def _turn(ground: Contest, system: System, commits: str) -> Outcome:
    await ground.give_turn(system)
    delay_us, siblings = COMMITS[commits]
    for name, value in (("commit_delay", delay_us), ("commit_siblings", siblings)):
        await ground.connection.execute(f"alter database {ground.database} set {name} = {value}")  # of new sessions
    async with ground.working(system):
        speeds = {
            clients: await Load(SCRIPT, {"students": ground.students}, clients).for_seconds(
                ground.dsn, _seconds(ground.bench)
            )
            for clients in CLIENTS
        }
        return Outcome(speeds, await ground.left(system))


def _seconds(bench: Bench) -> int:
    return bench.scaled(SECONDS)


def _side(commits: str, clients: int, system: System) -> str:
    return f"{commits}, {clients} client(s), {system.name}"


def _row(speeds: Mapping[str, Series], commits: str, clients: int, system: System) -> Row:
    name = _side(commits, clients, system)
    of_plain = speeds[name].over(speeds[_side(commits, clients, PLAIN)])
    return Row(name, {"of plain": of_plain, "speed": speeds[name]})


def _verdicts(speeds: Mapping[str, Series]) -> Sequence[Verdict]:
    def ratio(commits: str, clients: int, other: System) -> Series:
        return speeds[_side(commits, clients, BELL)].over(speeds[_side(commits, clients, other)])

    verdicts = [
        Verdict(
            f"{commits}, {clients} client(s): doorbell / silent", ratio(commits, clients, SILENT), ">=", NEAR_SILENT
        )
        for commits in COMMITS
        for clients in CLIENTS
    ]
    slow, most = "1 ms commits", max(CLIENTS)
    return [
        *verdicts,
        Verdict(f"{slow}, {most} clients: doorbell / NOTIFY", ratio(slow, most, NOTIFYING), ">=", TIMES_NOTIFY),
    ]
