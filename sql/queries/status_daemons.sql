-- Who runs, or ran within the hour, and what it did in the last five minutes.
select d.daemon_id, d.host, d.pid, d.version, d.state, d.started_at,
       extract(epoch from clock_timestamp() - d.seen_at)::double precision as seen_s,
       coalesce(b.batch_count, 0)::bigint as batch_count,
       coalesce(b.key_count, 0)::bigint as key_count,
       extract(epoch from clock_timestamp() - b.last_at)::double precision as last_batch_s
from outbox.daemon as d
left join (
    select b.daemon_id, count(*) as batch_count, sum(cardinality(b.keys)) as key_count, max(b.finished_at) as last_at
    from outbox.batch as b
    where b.finished_at > clock_timestamp() - interval '5 minutes' and b.started_at > clock_timestamp() - interval '1 day'
    group by b.daemon_id
) as b on b.daemon_id = d.daemon_id
where d.ended_at is null or d.ended_at > clock_timestamp() - interval '1 hour'
order by d.started_at
