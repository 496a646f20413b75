-- Register a topic, or change it; null leaves a setting as it is.
--   $1 topic, $2 recalculate, $3 list_keys, $4 max_attempts, $5 retry_base_s, $6 retry_max_s, $7 batch_keys,
--   $8 statement_timeout_s, $9 describe
select outbox.set_topic(
    $1::text, $2::text, $3::text, $4::integer, $5::integer, $6::integer, $7::integer, $8::integer,
    $9::text
)
