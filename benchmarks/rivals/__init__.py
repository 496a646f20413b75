"""What a user would pick instead of recalcd, each as its documentation recommends it; see `system` and `install`."""

import re
from collections.abc import Sequence

import click

from benchmarks.rivals import awa, chancy, graphile_worker, pg_boss, pgq, pgqueuer, plain, procrastinate
from benchmarks.rivals.system import HOW_TO_INSTALL, RECALCD, System, is_installed

QUEUES: tuple[System, ...] = (
    pgqueuer.PLAIN,
    pgqueuer.DEDUPED,
    procrastinate.PLAIN,
    procrastinate.DEDUPED,
    chancy.PLAIN,
    chancy.DEDUPED,
    graphile_worker.PLAIN,
    graphile_worker.DEDUPED,
    pg_boss.PLAIN,
    pg_boss.DEDUPED,
    pg_boss.BATCH,
    pg_boss.DEDUPED_BATCH,
    awa.PLAIN,
    pgq.COALESCING,
)
"""Queues; each needs benchmarks/rivals/install."""

SYSTEMS: tuple[System, ...] = (
    RECALCD,
    *QUEUES,
    plain.IN_THE_TRANSACTION,
    plain.MATERIALIZED_VIEW,
    plain.RECOMPUTE_ALL,
)
"""Every contestant."""


def available(systems: Sequence[System], beside: Sequence[str] = ()) -> tuple[System, ...]:
    """Return those that can run here, without benchmarks/rivals/install no queue; of them those named like `beside`."""
    return tuple(
        system
        for system in systems
        if can_run(system) and (not beside or any(_is_called(system, name) for name in beside))
    )


def can_run(system: System) -> bool:
    """Return whether benchmarks/rivals/install has brought all that a contestant needs."""
    return system not in QUEUES or (is_installed() and (system.needs is None or system.needs.exists()))


def require(beside: Sequence[str]) -> None:
    """Raise click.UsageError unless each of the names is part of some rival's, and that can run here."""
    rivals = [system for system in SYSTEMS if system is not RECALCD]
    for name in beside:
        if not any(_is_called(rival, name) for rival in rivals):
            raise click.UsageError(
                f"No rival is called {name!r}. There are: {'; '.join(each.name for each in rivals)}."
            )
        if not available(rivals, [name]):
            raise click.UsageError(HOW_TO_INSTALL)


def _is_called(system: System, name: str) -> bool:
    """Return whether the name is some of the words of the contestant's."""
    return re.search(rf"\b{re.escape(name)}\b", system.name, re.IGNORECASE) is not None
