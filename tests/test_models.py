"""Two exhaustive models: every interleaving of a few writers and daemons, in plain Python, without a database.

They show that it is the order of the steps that keeps the promise, not the luck of a test run; and each protecting step
is left out once, to see the model find what then goes wrong. What the steps do in SQL: outbox.claim_keys, outbox.ring.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import pytest

State = TypeVar("State", bound=Hashable)


def explore(start: State, successors: Callable[[State], Iterator[State]], is_wrong: Callable[[State], bool]) -> int:
    """Visit every reachable state; return how many are wrong. A wrong state is not followed further."""
    seen, queue, wrong_count = {start}, deque([start]), 0
    while queue:
        state = queue.popleft()
        if is_wrong(state):
            wrong_count += 1
            continue
        for successor in successors(state):
            if successor not in seen:
                seen.add(successor)
                queue.append(successor)
    assert len(seen) > 100, "a model that can't move proves nothing"
    return wrong_count


# The claim: one key, one fact and one event a writer, and snapshots as Postgres takes them at read committed.

Snapshot = frozenset[int]


@dataclass(frozen=True, slots=True)
class Event:
    writer: int
    holder: int | None = None
    is_deleted: bool = False
    """By the holder, who has not committed yet."""


@dataclass(frozen=True, slots=True)
class Daemon:
    step: int = 0
    snapshot: Snapshot = frozenset()
    total: int = 0
    written: int | None = None
    rounds_left: int = 2


@dataclass(frozen=True, slots=True)
class Claiming:
    committed: Snapshot = frozenset()
    """Writers whose fact and event can be seen."""
    events: tuple[Event, ...] = ()
    cached: int = 0
    key_lock: int | None = None
    daemons: tuple[Daemon, ...] = (Daemon(), Daemon())


AMOUNTS = {10: 1, 11: 2}
"""What each writer adds; its number is no daemon's."""

SHIPPED = ("snap", "look", "let go", "try lock", "snap", "take", "snap", "read", "write", "commit")


def is_stale(state: Claiming) -> bool:
    """Nothing is pending in anybody's eyes, and yet the cached value is not the true one."""
    return not state.events and state.cached != sum(AMOUNTS[writer] for writer in state.committed)


def claiming(program: tuple[str, ...]) -> Callable[[Claiming], Iterator[Claiming]]:

    def successors(state: Claiming) -> Iterator[Claiming]:
        for writer in AMOUNTS.keys() - state.committed:
            yield replace(state, committed=state.committed | {writer}, events=(*state.events, Event(writer)))
        for me, daemon in enumerate(state.daemons):
            if daemon.rounds_left:
                yield from STEPS[program[daemon.step]](state, me, daemon)

    return successors


def go_on(state: Claiming, me: int, daemon: Daemon, **change: object) -> Claiming:
    """Advance the daemon to its next step."""
    daemons = list(state.daemons)
    daemons[me] = replace(daemon, step=daemon.step + 1, **change)  # type: ignore[arg-type]  # fields of Daemon
    return replace(state, daemons=tuple(daemons))


def end(state: Claiming, me: int, daemon: Daemon, *, commits: bool) -> Claiming:
    """End the daemon's transaction, and with it its locks; what it deleted is gone, or comes back."""
    kept = tuple(event for event in state.events if not (commits and event.holder == me and event.is_deleted))
    freed = tuple(Event(event.writer) if event.holder == me else event for event in kept)
    daemons = list(state.daemons)
    daemons[me] = Daemon(rounds_left=daemon.rounds_left - 1)
    return replace(
        state,
        events=freed,
        cached=daemon.written if commits and daemon.written is not None else state.cached,
        key_lock=None if state.key_lock == me else state.key_lock,
        daemons=tuple(daemons),
    )


def snap(state: Claiming, me: int, daemon: Daemon) -> Iterator[Claiming]:
    yield go_on(state, me, daemon, snapshot=state.committed)


def hold(state: Claiming, me: int, daemon: Daemon, *, deleting: bool) -> Claiming:
    """Lock or delete what the snapshot shows and nobody else holds: for update skip locked."""
    events = tuple(
        Event(event.writer, me, deleting or event.is_deleted)
        if event.writer in daemon.snapshot and event.holder in (None, me)
        else event
        for event in state.events
    )
    return replace(state, events=events)


def look(state: Claiming, me: int, daemon: Daemon) -> Iterator[Claiming]:
    held = hold(state, me, daemon, deleting=False)
    found = any(event.holder == me for event in held.events)
    yield go_on(held, me, daemon) if found else end(state, me, daemon, commits=False)


def let_go(state: Claiming, me: int, daemon: Daemon) -> Iterator[Claiming]:
    freed = tuple(Event(event.writer) if event.holder == me else event for event in state.events)
    yield go_on(replace(state, events=freed), me, daemon)


def try_lock(state: Claiming, me: int, daemon: Daemon) -> Iterator[Claiming]:
    busy = state.key_lock not in (None, me)
    yield end(state, me, daemon, commits=False) if busy else go_on(replace(state, key_lock=me), me, daemon)


def take(state: Claiming, me: int, daemon: Daemon) -> Iterator[Claiming]:
    """Delete what the snapshot shows; where somebody else holds one of them for long, what is free by then."""
    is_held = any(event.writer in daemon.snapshot and event.holder not in (None, me) for event in state.events)
    seen_by = replace(daemon, snapshot=state.committed) if is_held else daemon
    yield go_on(hold(state, me, seen_by, deleting=True), me, seen_by)


def read(state: Claiming, me: int, daemon: Daemon) -> Iterator[Claiming]:
    yield go_on(state, me, daemon, total=sum(AMOUNTS[writer] for writer in daemon.snapshot))


def write(state: Claiming, me: int, daemon: Daemon) -> Iterator[Claiming]:
    """Write unless it is so already; wait for whoever has written and not committed."""
    if any(other.written is not None for each, other in enumerate(state.daemons) if each != me):
        return
    yield go_on(state, me, daemon, written=None if state.cached == daemon.total else daemon.total)


def commit(state: Claiming, me: int, daemon: Daemon) -> Iterator[Claiming]:
    yield end(state, me, daemon, commits=True)


STEPS = {
    "snap": snap,
    "look": look,
    "let go": let_go,
    "try lock": try_lock,
    "take": take,
    "read": read,
    "write": write,
    "commit": commit,
}


def test_in_no_interleaving_of_claims_is_an_older_result_left_behind() -> None:
    assert explore(Claiming(), claiming(SHIPPED), is_stale) == 0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(("snap", "look", "let go", "snap", "take", "snap", "read", "write", "commit"), id="no key lock"),
        pytest.param(
            ("snap", "look", "let go", "snap", "take", "snap", "try lock", "read", "write", "commit"),
            id="lock in the reading statement",
        ),
        pytest.param(
            ("snap", "look", "let go", "try lock", "snap", "read", "write", "snap", "take", "commit"),
            id="recalculation before the claim",
        ),
    ],
)
def test_the_model_of_the_claim_breaks_without(program: tuple[str, ...]) -> None:
    assert explore(Claiming(), claiming(program), is_stale) > 0


# The armed doorbell: writers ring only while a daemon is armed, daemons sleep armed or under another one's guard.


@dataclass(frozen=True, slots=True, order=True)
class Writer:
    step: int = 0
    will_notify: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Sleeper:
    does: str = "work"
    is_armed: bool = False
    is_rung: bool = False
    hears: bool = True
    """Whether it has a LISTEN session."""


@dataclass(frozen=True, slots=True)
class Bell:
    pending: int = 0
    writers: tuple[Writer, ...] = (Writer(),) * 3
    sleepers: tuple[Sleeper, ...] = (Sleeper(),) * 2


@dataclass(frozen=True, slots=True)
class Rules:
    """The shipped protocol; each turned off is a mutation."""

    writers_hold_on: bool = True
    sleepers_look_again: bool = True
    rings_are_cleared_before_arming: bool = True
    the_lock_goes_with_the_listener: bool = True
    """Armed on the LISTEN session: losing one loses both."""
    daemons_come_back: bool = True
    """One that lost its session listens again, then catches up."""


def sleeps_through_work(bell: Bell) -> bool:
    """Tell a lost wake-up: something is pending, all writers are gone, everybody sleeps, and no ring is on its way."""
    return (
        bell.pending > 0
        and all(writer.step == 3 for writer in bell.writers)
        and all(sleeper.does in ("sleep", "nothing") and not sleeper.is_rung for sleeper in bell.sleepers)
    )


def ringing(rules: Rules) -> Callable[[Bell], Iterator[Bell]]:
    def successors(bell: Bell) -> Iterator[Bell]:
        for number, writer in enumerate(bell.writers):
            yield from map(sort, write_and_ring(bell, number, writer))
        for number, sleeper in enumerate(bell.sleepers):
            ways = live(bell, number, sleeper, rules), mute(bell, sleeper), lose_session(bell, sleeper, rules)
            for changed, left in chain(*ways):
                yield sort(replace(bell, pending=left, sleepers=put(bell.sleepers, number, changed)))

    return successors


T = TypeVar("T")


def sort(bell: Bell) -> Bell:
    """Forget who is who, which makes no difference: several times fewer states."""
    return replace(bell, writers=tuple(sorted(bell.writers)), sleepers=tuple(sorted(bell.sleepers)))


def put(items: tuple[T, ...], number: int, item: T) -> tuple[T, ...]:
    return (*items[:number], item, *items[number + 1 :])


def write_and_ring(bell: Bell, number: int, writer: Writer) -> Iterator[Bell]:
    """Insert; ring, or hold on to silence; commit, which shows the event and delivers the ring to all who listen."""
    if writer.step == 3:
        return
    changed = replace(writer, step=writer.step + 1)
    if writer.step == 1:
        changed = replace(changed, will_notify=any(sleeper.is_armed for sleeper in bell.sleepers))
    after = replace(bell, writers=put(bell.writers, number, changed))
    if writer.step == 2:
        rung = tuple(
            replace(each, is_rung=each.is_rung or (writer.will_notify and each.hears)) for each in bell.sleepers
        )
        after = replace(after, pending=bell.pending + 1, sleepers=rung)
    yield after


def live(bell: Bell, number: int, sleeper: Sleeper, rules: Rules) -> Iterator[tuple[Sleeper, int]]:
    """Yield what a daemon may do next, and how many events are pending then."""
    match sleeper.does:
        case "work":
            yield replace(sleeper, does="arm", is_rung=False), 0
        case "arm":
            yield arm(bell, number, sleeper, rules), bell.pending
        case "look":
            yield replace(sleeper, does="work" if bell.pending else "lie down"), bell.pending
        case "lie down":
            rung = sleeper.is_rung and rules.rings_are_cleared_before_arming
            yield replace(sleeper, does="sleep", is_rung=rung), bell.pending
        case "sleep" if sleeper.is_rung:
            yield replace(sleeper, does="work"), bell.pending
        case "sleep" if sleeper.is_armed and sleeper.hears:  # the heartbeat: look again
            yield replace(sleeper, does="look"), bell.pending
        case "listen":
            yield Sleeper("work" if rules.daemons_come_back else "nothing", hears=rules.daemons_come_back), bell.pending


def mute(bell: Bell, sleeper: Sleeper) -> Iterator[tuple[Sleeper, int]]:
    """Let a daemon at work disarm, for a crowd."""
    if sleeper.does == "work" and sleeper.is_armed and sleeper.hears:
        yield replace(sleeper, is_armed=False), bell.pending


def lose_session(bell: Bell, sleeper: Sleeper, rules: Rules) -> Iterator[tuple[Sleeper, int]]:
    """Let an armed daemon be killed, or cut off."""
    if sleeper.is_armed and sleeper.hears:
        lost = Sleeper("listen") if rules.the_lock_goes_with_the_listener else sleeper
        yield replace(lost, hears=False), bell.pending


def arm(bell: Bell, number: int, sleeper: Sleeper, rules: Rules) -> Sleeper:
    if sleeper.is_armed:
        return replace(sleeper, does="look")
    is_silent = any(writer.step == 2 and not writer.will_notify for writer in bell.writers)
    if any(other.is_armed for each, other in enumerate(bell.sleepers) if each != number):
        return replace(sleeper, does="look")  # guarded
    if is_silent and rules.writers_hold_on:
        return Sleeper()  # busy
    return replace(sleeper, does="look" if rules.sleepers_look_again else "lie down", is_armed=True)


def lost_count(rules: Rules, daemon_count: int) -> int:
    return explore(Bell(sleepers=(Sleeper(),) * daemon_count), ringing(rules), sleeps_through_work)


@pytest.mark.parametrize("daemon_count", [1, 2, 3])
def test_in_no_interleaving_is_a_wake_up_lost(daemon_count: int) -> None:
    assert lost_count(Rules(), daemon_count) == 0


@pytest.mark.parametrize("rule", Rules.__slots__)
def test_the_model_of_the_bell_breaks_without(rule: str) -> None:
    """A daemon that dies armed and does not come back leaves those it guarded asleep: behind them is only the poll."""
    broken = replace(Rules(), **{rule: False})
    assert lost_count(broken, 1) + lost_count(broken, 2) > 0
