"""Any interleaving of writers, workers and operators, statement by statement, keeps the promise after every step.

`make test` tries the same modest number of histories every time; `make interleavings` tries as many new ones as
INTERLEAVINGS says. What fails is shrunk to the fewest steps, and printed as code with a blob that reproduces it.
"""

import asyncio
import os
from collections.abc import Awaitable, Iterator, Sequence
from typing import TypeVar

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
    max_examples=EXAMPLES or 60,
    stateful_step_count=50,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

number = st.integers(0, 7)
"""Picks one of those that are there, however many."""


T = TypeVar("T")


def pick(those: Sequence[T], number: int) -> T | None:
    return those[number % len(those)] if those else None


class Interleavings(RuleBasedStateMachine):
    """Moves one actor at a time. A rule that nobody can follow at the moment does nothing: what is drawn never depends
    on the database, so that a history can always be shrunk.
    """

    runner: asyncio.Runner
    world: SchoolStage

    def __init__(self) -> None:
        super().__init__()
        self.do(self.world.reset())

    def do(self, step: Awaitable[None]) -> None:
        async def run() -> None:
            await step

        self.runner.run(run())

    @rule(writer=number, name=st.sampled_from(WRITES), tape=st.integers(0, 10**9), commits=st.booleans())
    def write(self, writer: int, name: str, tape: int, commits: bool) -> None:
        if who := pick(self.world.writers, writer):
            self.do(self.world.write(who, name, tape))
            if commits and who in self.world.writers:
                self.do(self.world.end(who, "commit"))

    @rule(writer=number, how=st.sampled_from(["commit", "commit", "rollback"]))
    def end(self, writer: int, how: str) -> None:
        if who := pick(self.world.writers, writer):
            self.do(self.world.end(who, how))

    @rule(worker=number, statements=st.integers(1, 12))
    def claim(self, worker: int, statements: int) -> None:
        who = pick(self.world.idle_workers, worker)
        if who and self.world.is_anything_to_do:
            self.do(self.world.turn(who))
            self.do(self.world.go_on(who, statements))

    @rule(actor=number, statements=st.integers(1, 12))
    def go_on(self, actor: int, statements: int) -> None:
        if who := pick(self.world.busy, actor):
            self.do(self.world.go_on(who, statements))

    @rule(
        what=st.sampled_from(sorted(OPERATIONS)), first=number, count=st.integers(1, 3), statements=st.integers(1, 12)
    )
    def operate(self, what: str, first: int, count: int, statements: int) -> None:
        if self.world.operator.stands is Stands.IDLE:
            self.do(self.world.operate(what, first, count))
            self.do(self.world.go_on(self.world.operator, statements))

    @rule(what=st.sampled_from(sorted(UPSETS)), key=number)
    def upset(self, what: str, key: int) -> None:
        self.do(UPSETS[what](self.world, key))

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
