-- Stop being the session that runs a job.
--   $1 job
select pg_advisory_unlock(29284, $1::integer)
