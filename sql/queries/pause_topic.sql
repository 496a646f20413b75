-- Pause a topic.
--   $1 topic, $2 reason
select outbox.pause_topic($1::text, $2::text) as was_running
