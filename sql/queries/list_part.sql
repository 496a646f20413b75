-- The keys of a part of a topic.
--   $1 topic, $2 part
select k.key from outbox.list_part($1::text, $2::jsonb) as k (key)
