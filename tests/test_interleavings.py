"""Any interleaving of writers, workers and operators, statement by statement, keeps the promise after every step.

`make test` tries the same modest number of histories every time; `make interleavings` tries as many new ones as
INTERLEAVINGS says. What fails is shrunk to the fewest steps, and printed as code with a blob that reproduces it.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import pytest
import structlog
from hypothesis import HealthCheck
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from school_stage import OPERATIONS, UPSETS, WRITES, SchoolStage, clock_stopped
from stage import Stands, stage_on

from daemon.settings import Settings

EXAMPLES = int(os.environ.get("INTERLEAVINGS", "0"))
ACTORS = ("writer 1", "writer 2", "worker 1", "worker 2", "worker 3", "operator")

PROFILE = profile(
    max_examples=EXAMPLES or 30,
    stateful_step_count=50,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

number = st.integers(0, 7)
"""Picks one of those that are there, however many."""
count = st.integers(1, 6)

Move = Callable[[SchoolStage], Coroutine[Any, Any, None]]
"""A move that nobody can make at the moment does nothing: what is drawn never depends on the database, so that a
history can always be shrunk."""


@dataclass(frozen=True)
class Write:
    writer: int
    name: str
    tape: int
    commits: bool

    async def __call__(self, world: SchoolStage) -> None:
        if who := pick(world.writers, self.writer):
            await world.write(who, self.name, self.tape)
            if self.commits and who in world.writers:
                await world.end(who, "commit")


@dataclass(frozen=True)
class End:
    writer: int
    how: str

    async def __call__(self, world: SchoolStage) -> None:
        if who := pick(world.writers, self.writer):
            await world.end(who, self.how)


@dataclass(frozen=True)
class Claim:
    worker: int
    statements: int

    async def __call__(self, world: SchoolStage) -> None:
        who = pick(world.idle_workers, self.worker)
        if who and world.is_anything_to_do:
            await world.turn(who)
            await world.go_on(who, self.statements)


@dataclass(frozen=True)
class GoOn:
    actor: int
    statements: int

    async def __call__(self, world: SchoolStage) -> None:
        if who := pick(world.busy, self.actor):
            await world.go_on(who, self.statements)


@dataclass(frozen=True)
class Operate:
    what: str
    first: int
    keys: int
    statements: int

    async def __call__(self, world: SchoolStage) -> None:
        if world.operator.stands is Stands.IDLE:
            await world.operate(self.what, self.first, self.keys)
            await world.go_on(world.operator, self.statements)


@dataclass(frozen=True)
class Upset:
    what: str
    key: int

    async def __call__(self, world: SchoolStage) -> None:
        await UPSETS[self.what](world, self.key)


write = st.builds(Write, number, st.sampled_from(WRITES), st.integers(0, 10**9), st.booleans())
end = st.builds(End, number, st.sampled_from(["commit", "commit", "rollback"]))
claim = st.builds(Claim, number, count)
go_on = st.builds(GoOn, number, count)
operate = st.builds(Operate, st.sampled_from(sorted(OPERATIONS)), number, st.integers(1, 3), count)
upset = st.builds(Upset, st.sampled_from(sorted(UPSETS)), number)

MOVES: list[st.SearchStrategy[Move]] = [*[write] * 4, end, *[claim] * 3, *[go_on] * 3, operate, upset]
"""Weighted: a history without writes or claims would be one of nothing."""

T = TypeVar("T")


def pick(those: Sequence[T], number: int) -> T | None:
    return those[number % len(those)] if those else None


class Interleavings(RuleBasedStateMachine):
    """One rule for all moves, since Hypothesis leaves out some rules in every history."""

    runner: asyncio.Runner
    world: SchoolStage

    def __init__(self) -> None:
        super().__init__()
        self.do(self.world.reset())

    def do(self, step: Awaitable[None]) -> None:
        async def run() -> None:
            await step

        self.runner.run(run())

    @rule(move=st.sampled_from(MOVES).flatmap(lambda moves: moves))
    def step(self, move: Move) -> None:
        self.do(move(self.world))

    @invariant()
    def nothing_is_lost(self) -> None:
        self.do(self.world.check())

    def teardown(self) -> None:
        try:
            self.do(self.world.finish())
        finally:
            self.do(self.world.stage.clear())


@pytest.fixture
def world(dsn: str, settings: Settings) -> Iterator[SchoolStage]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    with asyncio.Runner() as runner, clock_stopped() as clock:
        Interleavings.runner = runner
        staged = stage_on(dsn, *ACTORS)
        witness = runner.run(asyncpg.connect(dsn))
        Interleavings.world = SchoolStage(runner.run(staged.__aenter__()), witness, clock, settings)
        runner.run(Interleavings.world.build())
        yield Interleavings.world
        runner.run(witness.close())
        runner.run(staged.__aexit__(None, None, None))


@pytest.mark.timeout(0 if EXAMPLES else 600)
@pytest.mark.usefixtures("world")
def test_in_any_interleaving_every_change_is_reflected_or_waits_or_is_owed() -> None:
    run_state_machine_as_test(Interleavings, settings=PROFILE)
