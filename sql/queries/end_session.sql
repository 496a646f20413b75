-- End a session of ours whose client has lost it; its transaction holds the locks of the keys until then.
--   $1 pid, $2 when it began
-- Returns was_there: false when it had ended already. Materialized, or the wrong sessions might be ended by the search.
with lost as materialized (
    select a.pid from pg_stat_activity as a
    where a.pid = $1::integer and a.backend_start = $2::timestamptz
)
select coalesce(bool_or(pg_terminate_backend(l.pid)), false) as was_there
from lost as l
