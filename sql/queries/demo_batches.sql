-- What the daemon did because of events, and when each batch committed.
select b.keys, b.event_count, b.started_at, pg_xact_commit_timestamp(b.xmin) as committed_at
from outbox.batch as b
where b.kind = 'live'
order by b.started_at
