-- See whether keys have drifted, and how.
--   $1 topic, $2 distinct keys
select d.checked_keys, d.drifted_keys, d.cached, d.truth from outbox.find_drift($1::text, $2::text[]) as d
