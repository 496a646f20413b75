"""AWA 0.6: a Rust runtime under Python workers; append-only storage whose partitions are truncated in turn.

By its package's page: `awa.bridge` enqueues through the application's own connection, and its SQL function is what is
called here; more workers than connections and poll_interval_ms=50, as its own benchmark has them; eight enqueue_shards
("Partitioned FIFO"), since events need no order; everything else as shipped. install_queue_storage() with the schema: a
first worker that meets a job keeps the storage of old versions. Its unique jobs (unique_opts) were not measured.

Its bulk calls leave one row in ready_segments for all jobs, and its SQL function one each, which every claim would then
read: so what is added in bulk is brought to what the bulk calls leave.
"""

from benchmarks.rivals.system import ALL, ONE, System, python

CONNECTIONS = 16


# One segment for all that is ready, as if they had been added by one call.
COLLAPSE = """
with gone as (
    delete from awa.ready_segments where queue = 'reports' returning *
)
insert into awa.ready_segments (
    ready_slot, ready_generation, queue, priority, enqueue_shard, first_lane_seq, next_lane_seq, first_run_at
)
select g.ready_slot, g.ready_generation, g.queue, g.priority, g.enqueue_shard, min(g.first_lane_seq),
       max(g.next_lane_seq), min(g.first_run_at)
from gone as g
group by 1, 2, 3, 4, 5
"""


def enqueue(source: str, run_at: str = "null::timestamptz") -> str:
    """Return the call that awa.bridge.insert_job makes."""
    return f"""
        awa.insert_job_compat(
            'recalculate', 'reports', jsonb_build_object('student_id', b.key), 'available'::awa.job_state, 2::smallint,
            25::smallint, {run_at}, '{{}}'::jsonb, '{{}}'::text[], null, null::bit(8), null::bytea
        ) from {source}
    """


# Its view of all jobs takes seconds of a core to read when a few thousand are there, which its workers would lack: so
# it is asked when nothing is ready any more, and only for those that run. Until then the lanes' ends tell.
LEFT = """
from generate_series(1, (
    select case when ready.jobs > 0 then ready.jobs else (
        select count(*) from awa.jobs as j where j.state not in ('completed', 'failed', 'cancelled')
    ) end
    from (
        select coalesce(sum(
                   awa.sequence_next_value(e.seq_name) - awa.sequence_next_value(c.seq_name)
               ), 0)::bigint as jobs
        from awa.queue_enqueue_heads as e
        join awa.queue_claim_heads as c using (queue, priority, enqueue_shard)
    ) as ready
))
"""

PLAIN = System(
    name="AWA",
    enqueue=f"perform {enqueue(ONE)};",
    enqueue_all=f"select count({enqueue(ALL, 'now()').replace(' from (', ') from (', 1)}; {COLLAPSE}",
    left=LEFT,
    setup=((python("python"), "with_awa.py", "migrate"),),
    worker=(python("python"), "with_awa.py"),
    connections=CONNECTIONS,
    # Its tables are emptied by its own rotation alone; and its view reads them all.
    clear="drop schema awa cascade",
    starts_over=True,
    jobs=("awa.ready_entries", "awa.ready_segments"),
)
