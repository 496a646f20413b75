-- Keys that fail, the longest failing first.
--   $1 topic or null, $2 state or null, $3 at most
select f.topic, f.key, f.state, f.attempts, f.event_count, f.first_failed_at, f.last_failed_at, f.next_attempt_at,
       f.sqlstate, f.message, f.detail, f.hint, f.context,
       extract(epoch from clock_timestamp() - f.first_failed_at)::double precision as failing_s,
       extract(epoch from f.next_attempt_at - clock_timestamp())::double precision as next_attempt_s
from outbox.failure as f
where ($1::text is null or f.topic = $1::text) and ($2::text is null or f.state = $2::text)
order by f.first_failed_at, f.topic, f.key
limit $3::bigint
