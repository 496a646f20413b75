"""What a contestant takes for a backlog that it was not given, by its pace on one that it was.

A queue does as many jobs in a second however many wait, but not of each kind: a pupil's first job has a report to
write, and all later ones find it true. Adding a million jobs, and working them off, would take most queues hours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.figures import Series
from benchmarks.rivals import QUEUES
from benchmarks.rivals.system import System

Case = tuple[str, int]
"""How the pupils of a backlog are drawn, and its events."""
ONE_EACH, CLEAN, ALL_PUPILS = ("uniform", 10_000), ("clean", 10_000), ("uniform", 100_000)
"""By which backlogs rivals are measured: with a job an event by the first two, of which the second leaves no report to
write; with a job a pupil, or none at all, by the third."""


@dataclass(frozen=True)
class Backlog:
    """The pupil of each event, in order."""

    keys: Sequence[str]
    leaves_reports_stale: bool = True

    @property
    def events(self) -> int:
        return len(self.keys)

    @cached_property
    def pupils(self) -> int:
        """How many there are."""
        return len(set(self.keys))

    @cached_property
    def until_true(self) -> int:
        """Events until each pupil has had one: then all reports are true, if they are worked off in order."""
        first: dict[str, int] = {}
        for position, key in enumerate(self.keys, 1):
            first.setdefault(key, position)
        return max(first.values())


@dataclass(frozen=True)
class Outcome:
    """Of one backlog, round by round."""

    events_per_s: Series
    """Until nothing is left."""
    true_after: Series
    """Seconds until every report is true."""


def has_a_job_an_event(system: System) -> bool:
    """Whether an event is a job, whatever other jobs there are of its pupil."""
    return system in QUEUES and not system.coalesces and not system.dedupes


def is_job_by_job(system: System) -> bool:
    """Whether an event is a job, and a job is a call."""
    return has_a_job_an_event(system) and system.calls_each


def measured_on(system: System, case: Case) -> Case:
    """Return the backlog by which a contestant is measured: that one, or one that stands for it."""
    if system.coalesces:
        return case
    if system.dedupes or system not in QUEUES:
        return ALL_PUPILS
    if case == CLEAN:
        return CLEAN
    # A batch of jobs holds the fewer pupils, the more unequal they are.
    return ONE_EACH if is_job_by_job(system) or case[0] == ONE_EACH[0] else (case[0], ALL_PUPILS[1])


def outcome(system: System, case: Case, backlogs: Mapping[Case, Backlog], speeds: Mapping[Case, Series]) -> Outcome:
    """Tell what a backlog takes, from the events/s that were measured of a contestant, by backlog."""
    backlog, stand_in = backlogs[case], backlogs[measured_on(system, case)]
    measured = speeds[measured_on(system, case)]
    if has_a_job_an_event(system) and measured_on(system, case) == ONE_EACH:
        pairs = list(zip(measured.values, speeds[CLEAN].values, strict=True))
        first, later = backlog.pupils, backlog.events - backlog.pupils
        to_true = backlog.until_true - backlog.pupils
        empty = [first / dirty + later / clean for dirty, clean in pairs]
        true = [first / dirty + to_true / clean for dirty, clean in pairs]
    elif system.dedupes:  # the same pupils are all that there is to do
        empty = true = [backlog.pupils / (speed * stand_in.pupils / stand_in.events) for speed in measured.values]
    elif has_a_job_an_event(system):
        empty = [backlog.events / speed for speed in measured.values]
        true = [backlog.until_true / speed for speed in measured.values]
    else:  # all of the school, whatever the backlog; for who coalesces it is the backlog itself
        empty = true = [stand_in.events / speed for speed in measured.values]
    return Outcome(Series.of("events/s", (backlog.events / seconds for seconds in empty)), Series.of("s", true))
