"""PgQ 3.5, the queue of Skype: an event log that is read in batches, and truncated instead of deleted from.

It stands for PgQue too, which is this engine in pure SQL under another name, and is to be had from GitHub alone. Both
leave to the consumer what it makes of a batch. Here it makes the most of it: one call for the different pupils of all
its events, by two connections, so that it coalesces as recalcd does. A queue's consumer takes one batch after the
other; pgq_coop, by which several share one, is no part of the package.

By its documentation: `insert_event` for the writer, an INSERT into current_event_table() for a bulk. A batch goes from
tick to tick. There is one every 10 ms, the shortest period but one in PgQue's documentation ("three latencies"; as
shipped, 100 ms there, a second here), whether or not there are new events (ticker_idle_period): the ticker counts
them by a sequence, and so takes those of a transaction in flight for seen. No NOTIFY is needed: the ticker tells the
consumer, which lives in the same process. The events' table is not rotated: that is due every two hours. The flavour
without C, which is all that a managed Postgres lets one install.
"""

from benchmarks.rivals.system import ALL, INSTALLED, System, python
from daemon.embedded import program

SQL = INSTALLED / "pgq_pl_only.sql"
QUEUE = "reports"
TICK_S = 0.01
CONNECTIONS = 2

SETUP = (str(program("psql")), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={SQL}")
REGISTER = f"""
select pgq.create_queue('{QUEUE}'), pgq.set_queue_config('{QUEUE}', 'ticker_max_lag', '0'),
       pgq.set_queue_config('{QUEUE}', 'ticker_idle_period', '0'), pgq.register_consumer('{QUEUE}', 'recalculate')
"""

# What the last batch that was finished could not see yet; the first queue of a database is number 1.
LEFT = """
from pgq.event_1 as e, pgq.subscription as s, pgq.tick as t
where t.tick_queue = s.sub_queue and t.tick_id = s.sub_last_tick
  and e.ev_txid >= txid_snapshot_xmin(t.tick_snapshot) and not txid_visible_in_snapshot(e.ev_txid, t.tick_snapshot)
"""

COALESCING = System(
    name="PgQ, a consumer that coalesces",
    enqueue=f"perform pgq.insert_event('{QUEUE}', 'student', p_key);",
    enqueue_all="insert into pgq.event_1_0 (ev_id, ev_time, ev_type, ev_data)"
    f" select nextval('pgq.event_1_id_seq'), now(), 'student', b.key from {ALL}",
    left=LEFT,
    clear="truncate pgq.event_1",
    setup=(SETUP,),
    needs=SQL,
    jobs=("pgq.event_1_0",),
    schema=REGISTER,
    worker=(python("python"), "with_pgq.py"),
    connections=CONNECTIONS,
    environment={"QUEUE": QUEUE, "TICK_S": str(TICK_S)},
    calls_each=False,
    coalesces=True,
)
