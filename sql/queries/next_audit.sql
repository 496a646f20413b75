-- Take the next keys to verify in the background.
--   $1 topic, $2 most keys
select outbox.next_audit($1::text, $2::integer) as keys
