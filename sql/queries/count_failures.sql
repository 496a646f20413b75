-- How many keys fail?
--   $1 topic or null, $2 state or null
select count(*) filter (where f.state = 'retrying') as retrying_count, count(*) filter (where f.state = 'dead') as dead_count
from outbox.failure as f
where ($1::text is null or f.topic = $1::text) and ($2::text is null or f.state = $2::text)
