-- What time is it, and when was the oldest batch finished that the history still knows?
--   $1 topic
select clock_timestamp() as now,
       (select min(b.finished_at) from outbox.batch as b where b.topic = $1::text) as history_begins_at
