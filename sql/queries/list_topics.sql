-- The registered topics.
select t.topic, t.recalculate, t.list_keys, t.batch_keys, t.paused_at, t.paused_reason from outbox.topic as t order by t.topic
