-- Who runs, or ran within the hour.
select d.daemon_id, d.host, d.pid, d.version, d.state, d.started_at,
       extract(epoch from clock_timestamp() - d.seen_at)::double precision as seen_s
from outbox.daemon as d
where d.ended_at is null or d.ended_at > clock_timestamp() - interval '1 hour'
order by d.started_at
