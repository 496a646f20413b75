-- How far the daemon is. Freshness is that of each batch's oldest event; the exact one, of every write, is reckoned in the end.
select (select count(*) from outbox.event as e) as pending_count,
       (select count(*) from outbox.failure as f) as failing_count,
       coalesce(sum(cardinality(b.keys)), 0)::bigint as recalculation_count,
       percentile_disc(0.5) within group (order by extract(epoch from b.finished_at - b.oldest_event_at)::double precision)
           as freshness_p50_s
from outbox.batch as b
where b.kind = 'live'
