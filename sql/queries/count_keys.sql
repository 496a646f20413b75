-- How many keys has a topic?
--   $1 topic
select count(*) as key_count from outbox.list_keys($1::text)
