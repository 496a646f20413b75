-- Finish a batch before its commit.
--   $1 topic, $2 keys, $3 changed keys, $4 events, $5 oldest event, $6 reasons, $7 started at, $8 milliseconds,
--   $9 daemon, $10 kind, $11 keep history
select outbox.settle(
    $1::text, $2::text[], $3::text[], $4::bigint, $5::timestamptz, $6::text[], $7::timestamptz, $8::real,
    $9::uuid, $10::text, $11::boolean
)
