-- The keys that failed last.
--   $1 most rows
select f.topic, f.key, f.state, f.attempts, f.sqlstate, f.message
from outbox.failure as f
order by f.last_failed_at desc
limit $1::integer
