-- Take the next batch; no row's topic is null when there is nothing to take.
--   $1 hints per topic (json), $2 the topic served last, $3 due failures first
select c.topic, c.keys, c.event_count, c.oldest_event_at, c.started_at, c.reasons, c.traceparent, c.folded_count,
       c.head_event_id, c.is_full, c.suspects
from outbox.claim($1::jsonb, $2::text, $3::boolean) as c
