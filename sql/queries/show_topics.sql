-- The registered topics with all their settings.
select t.topic, t.recalculate, t.list_keys, t.max_attempts, t.retry_base_s, t.retry_max_s, t.batch_keys,
       t.statement_timeout_s, t.describe, t.paused_at, t.paused_reason
from outbox.topic as t
order by t.topic
