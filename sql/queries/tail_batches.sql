-- The latest batches, newest first.
--   $1 topic, $2 key: null for any; $3 finished after; $4 most rows: null for all
-- The day before allows for batches that took long: it is what leaves old partitions alone.
select b.batch_id, b.topic, b.kind, cardinality(b.keys) as key_count, cardinality(b.changed_keys) as changed_count,
       b.event_count, b.reasons, b.recalculate_ms, b.finished_at,
       extract(epoch from b.finished_at - b.oldest_event_at)::double precision as freshness_s
from outbox.batch as b
where b.finished_at > $3::timestamptz and b.started_at > $3::timestamptz - interval '1 day'
  and (b.topic = $1::text or $1::text is null)
  and (b.keys @> array[$2::text] or $2::text is null)
order by b.finished_at desc, b.batch_id desc
limit $4::bigint
