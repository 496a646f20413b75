-- Note the keys of a batch that vanished, or of one about to be called.
--   $1 topic, $2 distinct keys
select outbox.suspect_keys($1::text, $2::text[])
