-- Forget that keys failed.
--   $1 topic, $2 distinct keys
select outbox.drop_failures($1::text, $2::text[]) as dropped_keys
