-- Take named keys.
--   $1 topic, $2 distinct keys
select $1::text as topic, c.keys, c.event_count, c.oldest_event_at, c.started_at, c.reasons, c.traceparent, c.folded_count,
       null::bigint as head_event_id, false as is_full, false as suspects
from outbox.claim_keys($1::text, $2::text[]) as c
