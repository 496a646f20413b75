-- Put keys back.
--   $1 topic, $2 distinct keys
select outbox.replay($1::text, $2::text[])
