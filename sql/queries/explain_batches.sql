-- The last batches that recalculated a key, newest first. Reads the history backwards until it has enough.
--   $1 topic, $2 key, $3 at most
select b.batch_id, b.kind, b.started_at, b.finished_at, b.event_count, cardinality(b.keys) as key_count, b.reasons,
       case when b.changed_keys is not null then $2::text = any (b.changed_keys) end as changed,
       extract(epoch from b.started_at - b.oldest_event_at)::double precision as waited_s,
       b.recalculate_ms::double precision as recalculate_ms,
       b.daemon_id, d.host, d.pid,
       extract(epoch from clock_timestamp() - b.finished_at)::double precision as ago_s
from outbox.batch as b
left join outbox.daemon as d on d.daemon_id = b.daemon_id
where b.topic = $1::text and $2::text = any (b.keys)
order by b.started_at desc, b.batch_id desc
limit $3::bigint
