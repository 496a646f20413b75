-- The keys of a job's next chunk.
--   $1 job, $2 most keys
select k.key, k.is_pending from outbox.list_job_keys($1::integer, $2::integer) as k
