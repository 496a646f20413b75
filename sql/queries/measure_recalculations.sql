-- How long does the recalculation of a key take? Null when none is known; by the last thousand batches.
--   $1 topic
select sum(b.recalculate_ms) / 1000 / nullif(sum(cardinality(b.keys)), 0) as key_s
from (
    select l.recalculate_ms, l.keys from outbox.batch as l
    where l.topic = $1::text
    order by l.finished_at desc
    limit 1000
) as b
