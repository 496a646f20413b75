-- Clear keys of suspicion: their batch failed, but it did not vanish.
--   $1 topic, $2 keys
delete from outbox.suspect as s where s.topic = $1::text and s.key = any ($2::text[])
