"""What a user would pick instead of recalcd, each as its documentation recommends it; see `system` and `install`."""

from benchmarks.rivals import awa, chancy, graphile_worker, pg_boss, pgqueuer, plain, procrastinate
from benchmarks.rivals.system import RECALCD, System, is_installed

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
)
"""Job queues; each needs benchmarks/rivals/install."""

SYSTEMS: tuple[System, ...] = (
    RECALCD,
    *QUEUES,
    plain.IN_THE_TRANSACTION,
    plain.MATERIALIZED_VIEW,
    plain.RECOMPUTE_ALL,
)
"""Every contestant."""


def available(systems: tuple[System, ...]) -> tuple[System, ...]:
    """Return those that can run here: without benchmarks/rivals/install, none that has workers of its own."""
    return systems if is_installed() else tuple(system for system in systems if system not in QUEUES)
