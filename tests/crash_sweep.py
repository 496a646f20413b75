"""All points of a scenario, and a fault at each of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from crash_process import Point
from crash_runs import FAULTS, Fault, can_be_hit
from crash_scenarios import Scenario
from crash_world import Site, World

TRIES = 4
"""How often a point is aimed at that the run did not come by: how often a daemon polls is not the same every time."""
MOST_ROUNDS = 12
"""A step that comes by more often than that is one of a loop: the files of a migration, say."""
SURE_ROUNDS = 2
"""Of a step, in every run. How many more there are depends on how many events a batch happens to find."""
POLLING = ("recalcd listener", "recalcd drain")
"""Sessions that go round and round: how often depends on time, so that their later rounds can't be aimed at."""
OUTPUT_TAIL = 1500

Hit = tuple[Point, Fault]
Choice = Callable[[Iterable[Point]], Iterator[Hit]]


@dataclass
class Account:
    """What became of a scenario's sweep."""

    scenario: str
    points: list[Point]
    hits: list[Hit] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    run_count: int = 0

    @property
    def is_good(self) -> bool:
        return bool(self.hits) and not self.failures


async def record(world: World, scenario: Scenario) -> list[Point]:
    """Return the points of a run, in order, that can be aimed at: a second run must have come by them, too."""
    first, second = [(await scenario.run(world)).points for _ in range(2)]
    concerned = [each for each in first if not scenario.sessions or each.session in scenario.sessions]
    again, chosen = {*second}, representative(concerned)
    return [
        each for each in chosen if each in again and (each.occurrence <= SURE_ROUNDS or each.session not in POLLING)
    ]


def representative(points: Sequence[Point]) -> list[Point]:
    """Leave out most rounds of a long loop: the first two, the one in the middle and the last stand for all."""
    counts = Counter(each.site for each in points)
    return [
        each
        for each in points
        if (count := counts[each.site]) <= MOST_ROUNDS or each.occurrence in (1, 2, count // 2, count)
    ]


async def sweep(site: Site, scenario: Scenario, choose: Choice) -> Account:
    """Break the scenario at all points that `choose` makes of it."""
    async with site.world(scenario.subject()) as world:
        account = Account(scenario.name, await record(world, scenario))
        for point, fault in choose(account.points):
            await _hit(world, scenario, point, fault, account)
    return account


async def _hit(world: World, scenario: Scenario, point: Point, fault: Fault, account: Account) -> None:
    for _ in range(TRIES):
        account.run_count += 1
        world.launcher.output.write_text("")
        try:
            ended = await scenario.run(world, point, fault)
        except Exception as error:  # noqa: BLE001  # all points are to be seen, and all that fail to be told
            said = world.launcher.output.read_text()[-OUTPUT_TAIL:]
            account.failures.append(f"{scenario.name}: {fault} at {point}: {type(error).__name__} {error}\n{said}")
            return
        if ended.fault:
            account.hits.append((point, fault))
            return
    if point.occurrence <= SURE_ROUNDS:
        account.failures.append(f"{scenario.name}: {fault} at {point}: not reached in {TRIES} runs")


@dataclass(frozen=True)
class Only:
    """One fault, at every point."""

    fault: Fault

    def __call__(self, points: Iterable[Point]) -> Iterator[Hit]:
        """Choose."""
        for point in points:
            if can_be_hit(point, self.fault):
                yield point, self.fault


@dataclass(frozen=True)
class Rotation:
    """One fault at every point, another one at the next; a share of the points, where several tests divide them."""

    share: int = 0
    of: int = 1

    def __call__(self, points: Iterable[Point]) -> Iterator[Hit]:
        """Choose."""
        for number, point in enumerate(points):
            possible = [fault for fault in FAULTS if can_be_hit(point, fault)]
            if number % self.of == self.share:
                yield point, possible[number // self.of % len(possible)]
