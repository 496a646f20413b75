-- Create a job, with its keys if they were named.
--   $1 kind, $2 topic, $3 part, $4 keys or null, $5 how many keys, $6 keys of the first chunk, $7 most keys a second
with made as (
    insert into outbox.job (kind, topic, part, is_named, key_count, chunk_keys, rate_limit)
    values ($1::text, $2::text, $3::text::jsonb, $4::text[] is not null, $5::bigint, $6::integer, $7::real)
    returning job_id
), named as (
    insert into outbox.job_key (job_id, key)
    select m.job_id, k.key from made as m cross join unnest($4::text[]) as k (key)
)
select m.job_id from made as m
