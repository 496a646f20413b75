-- Become the session that runs a job, until it is released or the session ends.
--   $1 job
select pg_try_advisory_lock(29284, $1::integer) as is_held
