"""Every schedule of a few actors: at each point, each of those who can move, moves next once.

As Postgres's isolation tester tries the permutations of its steps; but here the steps are the statements of shipped
code, and nobody has to write them down.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

from stage import Actor, Stage, Stands

MOST_SCHEDULES = 5000
"""A scenario with more is too large to be tried in full."""


async def schedules(stage: Stage, begin: Callable[[], Awaitable[None]]) -> AsyncIterator[list[str]]:
    """Yield who moved, in order, after each schedule has come to its end. `begin` sets the scene for each anew.

    A schedule is a list of choices; the next one is the last whose later choice was not tried yet, as in a depth-first
    walk. Whoever waits for a lock has no choice.
    """
    choices: list[int] = []
    for _ in range(MOST_SCHEDULES):
        await begin()
        moved, widths = await _play(stage, choices)
        yield moved
        choices += [0] * (len(widths) - len(choices))
        while choices and choices[-1] + 1 == widths[len(choices) - 1]:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1
    raise AssertionError(f"more than {MOST_SCHEDULES} schedules")


async def _play(stage: Stage, choices: list[int]) -> tuple[list[str], list[int]]:
    """Follow the choices, then always the first actor; return who moved, and how many could have at each point."""
    moved: list[str] = []
    widths: list[int] = []
    while ready := _ready(stage):
        choice = choices[len(widths)] if len(widths) < len(choices) else 0
        widths.append(len(ready))
        moved.append(ready[choice].name)
        await stage.move(ready[choice])
    assert all(actor.stands is Stands.IDLE for actor in stage.actors), "somebody waits for ever"
    return moved, widths


def _ready(stage: Stage) -> list[Actor]:
    return [actor for actor in stage.actors if actor.can_move]
