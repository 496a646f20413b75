"""What is run and broken: every operation that writes, how to go on after it was broken, and what must be true then."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from crash_process import Point
from crash_runs import Act, Ended, Fault, Play, no_act
from crash_world import Ledger, Subject, World

Step = Callable[[World], Awaitable[None]]
Check = Callable[[World, Ended], Awaitable[None]]

NO_DATABASE = 3
"""Exit code of a command whose connection was lost."""


@dataclass(frozen=True)
class Scenario:
    """A command, and the state it finds."""

    name: str
    command: tuple[str, ...]
    prepare: Step
    """Makes the state that the command finds, the same every time."""
    check: Check
    """Goes on as an operator does after the fault, then asserts that nothing is lost or stale, and nobody charged."""
    exit_codes: frozenset[int] = frozenset({0})
    """Of a run that nothing disturbs."""
    subject: Callable[[], Subject] = Ledger
    settings: Mapping[str, str] = field(default_factory=dict)
    play: Callable[[], Act] = lambda: no_act
    sessions: Sequence[str] = ()
    """What it is about, by application_name, where another scenario has the steps of the others; () means all."""

    async def run(self, world: World, target: Point | None = None, fault: Fault | None = None) -> Ended:
        """Run it once, with a fault at the target, and check all that must be true afterwards."""
        await self.prepare(world)
        environment = world.environment(**self.settings)
        ended = await Play(world, self.command, environment, self.play(), target, fault).run()
        await world.until_alone()
        self._check_end(ended)
        await self.check(world, ended)
        return ended

    def _check_end(self, ended: Ended) -> None:
        """Assert that the process ended as it should: killed, or having coped, or with a sentence."""
        match ended.fault:
            case None:
                expected = self.exit_codes
            case "kill":
                expected = frozenset({-9})
            case _:
                expected = self.exit_codes | {0, NO_DATABASE}
        assert ended.exit_code in expected, f"it exited with {ended.exit_code}"
