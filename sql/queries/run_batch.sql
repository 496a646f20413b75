-- Run the next batch in one statement; no row's topic is null when there is nothing to take.
--   $1 hints per topic (json), $2 the topic served last, $3 due failures first, $4 daemon, $5 kind, $6 keep history
select b.topic, b.keys, b.event_count, b.oldest_event_at, b.started_at, b.reasons, b.traceparent, b.folded_count,
       b.head_event_id, b.is_full, b.suspects, b.changed_keys, b.recalculate_ms, b.statement_timeout_s, b.after
from outbox.run_batch($1::jsonb, $2::text, $3::boolean, $4::uuid, $5::text, $6::boolean) as b
