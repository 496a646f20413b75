-- How many keys has a part of a topic?
--   $1 topic, $2 part
select count(*) as key_count from outbox.list_part($1::text, $2::text::jsonb)
