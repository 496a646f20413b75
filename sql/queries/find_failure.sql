-- What is known of a key that fails.
--   $1 topic, $2 key
select f.topic, f.key, f.state, f.attempts, f.event_count, f.first_failed_at, f.last_failed_at, f.next_attempt_at,
       f.sqlstate, f.message, f.detail, f.hint, f.context,
       extract(epoch from clock_timestamp() - f.first_failed_at)::double precision as failing_s,
       extract(epoch from f.next_attempt_at - clock_timestamp())::double precision as next_attempt_s
from outbox.failure as f
where f.topic = $1::text and f.key = $2::text
