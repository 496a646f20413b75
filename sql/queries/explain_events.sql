-- The events that wait for a key, oldest first.
--   $1 topic, $2 key, $3 at most
select e.event_id, e.reason, e.enqueued_at,
       extract(epoch from clock_timestamp() - e.enqueued_at)::double precision as age_s
from outbox.event as e
where e.topic = $1::text and e.key = $2::text
order by e.event_id
limit $3::bigint
