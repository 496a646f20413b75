"""With how many processes and connections each queue works fastest on this machine."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

from benchmarks.bench import Bench
from benchmarks.figures import Part, Row, columns, interleaved
from benchmarks.pace import ONE_EACH, Backlog, is_job_by_job
from benchmarks.rivals import QUEUES, available
from benchmarks.rivals.contest import contest
from benchmarks.rivals.system import System
from benchmarks.saturation import LIMIT_S, STUDENTS, backlog_keys, worked_off

PROCESSES = (1, 2)
CONNECTIONS = (4, 8, 16)
UNITS = {"events_per_s": "jobs/s"}


async def measure(bench: Bench) -> Part:
    """Let each queue work at a backlog with few hands and with many, in turns."""
    queues = [queue for queue in available(QUEUES, bench.beside) if is_job_by_job(queue)]
    async with contest(bench, queues, bench.scaled(STUDENTS, least=100)) as ground:
        rows = await ground.connection.fetch("select w.student_id::text from bench.work as w order by w.turn")
        shape, events = ONE_EACH
        backlog = Backlog(backlog_keys(shape, bench.scaled(events, least=100), [row[0] for row in rows]))
        turns = {
            each.name: partial(worked_off, ground, each, backlog, within_s=LIMIT_S)
            for queue in queues
            for each in variants(queue)
        }
        measured = await interleaved("hands", bench.rounds, turns)
    return Part(
        name="hands",
        question="How many processes and connections suit each queue on this machine?",
        how=f"A job an event; watched for {LIMIT_S:g} s, and credited with what it ends while it stops. The"
        " first of each is what it has in all other parts.",
        rows=[Row(name, columns(UNITS, drains)) for name, drains in measured.items()],
    )


def variants(queue: System) -> Iterator[System]:
    """Return a queue with its own number of hands, and with every other."""
    for processes, connections in dict.fromkeys(
        [(queue.processes, queue.connections), *product(PROCESSES, CONNECTIONS)]
    ):
        name = f"{queue.name}, {processes} x {connections}"
        yield replace(queue, name=name, processes=processes, connections=connections)
