-- Hold a lock for as long as this session lives: the proof of life that daemons of every role can see in pg_locks.
-- Other roles' rows of pg_stat_activity do not tell when a backend started. Nobody takes it exclusively: never waits.
--   $1 daemon
select pg_try_advisory_lock_shared(29284, hashtext($1::uuid::text))
