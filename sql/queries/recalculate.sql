-- Recalculate keys; null when the routine does not say which changed.
--   $1 topic, $2 distinct keys
select outbox.recalculate($1::text, $2::text[]) as changed_keys
