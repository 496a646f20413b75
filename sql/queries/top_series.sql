-- What was recalculated lately, in slices of time, oldest first; a slice without a batch is there, too.
--   $1 slices, $2 seconds of each
with slice as (
    select n as number, date_bin(make_interval(secs => $2::integer), clock_timestamp(), 'epoch')
           - make_interval(secs => ($1::integer - n) * $2::integer) as begins_at
    from generate_series(1, $1::integer) as n
)
select coalesce(sum(cardinality(b.keys)), 0)::bigint as key_count, coalesce(sum(b.event_count), 0)::bigint as event_count,
       max(extract(epoch from b.finished_at - b.oldest_event_at))::double precision as freshness_s
from slice as s
left join outbox.batch as b
       on b.finished_at >= s.begins_at and b.finished_at < s.begins_at + make_interval(secs => $2::integer)
      and b.started_at > s.begins_at - interval '1 day'
group by s.number
order by s.number
