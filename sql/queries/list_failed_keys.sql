-- The failing keys of a topic, oldest failure first.
--   $1 topic, $2 only dead ones, $3 SQLSTATE or null, $4 failed last at or after, or null, $5 failed last before, or null
select f.key
from outbox.failure as f
where f.topic = $1::text
  and (not $2::boolean or f.state = 'dead')
  and ($3::text is null or f.sqlstate = $3::text)
  and ($4::timestamptz is null or f.last_failed_at >= $4::timestamptz)
  and ($5::timestamptz is null or f.last_failed_at < $5::timestamptz)
order by f.last_failed_at, f.key
