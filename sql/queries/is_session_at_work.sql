-- Is a session at work for its client? Not when it is gone, nor when it has been waiting for the client for a while:
-- idle, or between the parts of a statement.
--   $1 pid, $2 when it began, $3 how long a while is, in seconds
select exists (
    select from pg_stat_activity as a
    where a.pid = $1::integer and a.backend_start = $2::timestamptz
      and (
          a.state not like 'idle%' and a.wait_event is distinct from 'ClientRead'
          or a.state_change > clock_timestamp() - make_interval(secs => $3::float8)
      )
) as is_at_work
