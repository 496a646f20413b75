-- Note that a chunk is done, in the transaction that does it.
--   $1 job, $2 its last key, $3 keys, $4 changed, $5 skipped, $6 failed, $7 keys of the next chunk, $8 keys a second
update outbox.job as j
set cursor = $2::text, done_count = j.done_count + $3::bigint, changed_count = j.changed_count + $4::bigint,
    skipped_count = j.skipped_count + $5::bigint, failed_count = j.failed_count + $6::bigint, chunk_keys = $7::integer,
    keys_per_s = $8::real, advanced_at = clock_timestamp()
where j.job_id = $1::integer
