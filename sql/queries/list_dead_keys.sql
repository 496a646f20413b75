-- The dead keys of a topic, oldest first.
--   $1 topic
select f.key from outbox.failure as f where f.topic = $1::text and f.state = 'dead' order by f.last_failed_at, f.key
