-- Forget keys whose source was deleted.
--   $1 topic, $2 distinct keys
select f.event_count, f.changed_count, f.note_count, f.job_count, f.batch_count, f.is_certain
from outbox.forget($1::text, $2::text[]) as f
