-- The keys of a topic that were recalculated in a range of time.
--   $1 topic, $2 from, or null, $3 up to, not included, $4 reason that an event of their batch gave, or null
select distinct k.key
from outbox.batch as b
cross join unnest(b.keys) as k (key)
where b.topic = $1::text
  and ($2::timestamptz is null or b.finished_at >= $2::timestamptz)
  and b.finished_at < $3::timestamptz
  and ($4::text is null or $4::text = any (b.reasons))
order by k.key
