"""AWA 0.6: a Rust runtime under Python workers; append-only storage whose partitions are truncated in turn.

By its package's page: `awa.bridge` enqueues through the application's own connection, and its SQL function is what is
called here; as many workers as connections; everything else as shipped. It has unique jobs, which its bridge, the way
to enqueue in a writer's transaction, does not offer: so it runs in one setting.
"""

from benchmarks.rivals.system import ALL, ONE, System, python

CONNECTIONS = 16


def enqueue(source: str) -> str:
    """Return the call that awa.bridge.insert_job makes."""
    return f"""
        awa.insert_job_compat(
            'recalculate', 'reports', jsonb_build_object('student_id', b.key), 'available'::awa.job_state, 2::smallint,
            25::smallint, null::timestamptz, '{{}}'::jsonb, '{{}}'::text[], null, null::bit(8), null::bytea
        ) from {source}
    """


PLAIN = System(
    name="AWA",
    enqueue=f"perform {enqueue(ONE)};",
    enqueue_all=f"select count({enqueue(ALL).replace(' from (', ') from (', 1)}",
    left="from awa.jobs as j where j.state not in ('completed', 'failed', 'cancelled')",
    setup=((python("python"), "with_awa.py", "migrate"),),
    workers=((python("python"), "with_awa.py"),),
    connections=CONNECTIONS,
    # Its tables are emptied by its own rotation alone; and its view reads them all.
    clear="drop schema awa cascade",
    starts_over=True,
    jobs="awa.ready_entries",
)
