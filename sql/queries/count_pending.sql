-- What waits, for a line of status: counted up to a limit, since a backlog of millions is not for counting every ten seconds.
--   $1 limit
-- Returns pending_events, and oldest_s: how long the oldest of them has waited; null when there is none.
select count(*) as pending_events, extract(epoch from clock_timestamp() - min(e.enqueued_at))::double precision as oldest_s
from (select e.enqueued_at from outbox.event as e order by e.event_id limit $1::bigint) as e
