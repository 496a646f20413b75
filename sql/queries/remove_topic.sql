-- Take a topic out of the registry.
--   $1 topic, $2 whether its events and failures may be lost
select r.event_count, r.failure_count from outbox.remove_topic($1::text, $2::boolean) as r
