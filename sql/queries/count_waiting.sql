-- What a topic owes: its events, and its failed keys.
--   $1 topic
select (select count(*) from outbox.event as e where e.topic = $1::text) as event_count,
       (select count(*) from outbox.failure as f where f.topic = $1::text) as failure_count
