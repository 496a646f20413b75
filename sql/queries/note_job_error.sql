-- Note why the process that runs a job gives it up.
--   $1 job, $2 error
update outbox.job as j set error = left($2::text, 1000) where j.job_id = $1::integer
