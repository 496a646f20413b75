-- Which session is this, of which run of the server? The server's own processes all change when a crash makes it
-- recover, though its start time stays; their pids are what any role may see of them. As text: for an array of
-- integers asyncpg switches jit off and on again, in whichever sessions a transaction pooler picks for that.
select a.pid, a.backend_start as started_at, pg_postmaster_start_time() as server_started_at,
       array(
           select s.pid::text from pg_stat_activity as s
           where s.datid is null and s.usesysid is null
       ) as server_pids
from pg_stat_activity as a
where a.pid = pg_backend_pid()
