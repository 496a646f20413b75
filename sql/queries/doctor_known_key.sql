-- A key that was recalculated lately and owes nothing, to try a routine on.
--   $1 topic
select k.key
from (
    select b.keys from outbox.batch as b where b.topic = $1::text order by b.started_at desc limit 1
) as b
cross join unnest(b.keys) as k (key)
where not exists (select from outbox.failure as f where f.topic = $1::text and f.key = k.key)
limit 1
