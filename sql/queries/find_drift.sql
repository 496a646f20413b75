-- Recalculate keys to see whether they drifted. Roll back afterwards.
--   $1 topic, $2 distinct keys
select d.checked_keys, d.drifted_keys from outbox.find_drift($1::text, $2::text[]) as d
