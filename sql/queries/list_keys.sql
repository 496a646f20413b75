-- A page of a topic's keys.
--   $1 topic, $2 the last key of the page before or null, $3 most keys
select k.key from outbox.list_keys($1::text, $2::text, $3::integer) as k (key)
