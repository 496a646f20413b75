-- Start a job, or go on with it. The chunk that an earlier run gave up on is tried by halves.
--   $1 job
update outbox.job as j
set chunk_keys = case when j.done_count = 0 and j.error is null then j.chunk_keys else greatest(1, j.chunk_keys / 2) end,
    error = null
where j.job_id = $1::integer
