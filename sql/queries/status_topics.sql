-- What waits, what fails and how fresh it is, per topic; topics that nobody registered, too, if events name them.
-- An event is claimable unless its key is in backoff: such a one waits on purpose, and says nothing about our health.
-- Freshness is that of the oldest event of each live batch, the worst of it, over the last five minutes.
with by_key as (
    select e.topic, e.key, count(*) as event_count, min(e.enqueued_at) as oldest_at
    from outbox.event as e
    group by e.topic, e.key
), pending as (
    select k.topic, sum(k.event_count)::bigint as pending_events, count(*) as pending_keys, min(k.oldest_at) as oldest_at,
           min(k.oldest_at) filter (where f.key is null or f.next_attempt_at <= clock_timestamp()) as claimable_at
    from by_key as k
    left join outbox.failure as f on f.topic = k.topic and f.key = k.key
    group by k.topic
), failing as (
    select f.topic,
           count(*) filter (where f.state = 'retrying') as retrying_keys,
           count(*) filter (where f.state = 'dead') as dead_keys
    from outbox.failure as f
    group by f.topic
), done as (
    select b.topic, sum(b.event_count) as event_count, sum(cardinality(b.keys)) as key_count,
           percentile_disc(array[0.5, 0.95, 0.99]) within group (
               order by extract(epoch from b.finished_at - b.oldest_event_at)::double precision
           ) filter (where b.oldest_event_at is not null) as freshness_s
    from outbox.batch as b
    where b.kind = 'live' and b.finished_at > clock_timestamp() - interval '5 minutes' and b.started_at > clock_timestamp() - interval '1 day'
    group by b.topic
)
select coalesce(t.topic, p.topic) as topic,
       t.topic is not null as is_registered,
       t.paused_at, t.paused_reason,
       coalesce(p.pending_events, 0)::bigint as pending_events,
       coalesce(p.pending_keys, 0)::bigint as pending_keys,
       extract(epoch from clock_timestamp() - p.oldest_at)::double precision as oldest_s,
       extract(epoch from clock_timestamp() - p.claimable_at)::double precision as oldest_claimable_s,
       coalesce(f.retrying_keys, 0)::bigint as retrying_keys,
       coalesce(f.dead_keys, 0)::bigint as dead_keys,
       coalesce(d.event_count, 0)::bigint as event_count,
       coalesce(d.key_count, 0)::bigint as key_count,
       d.freshness_s[1] as freshness_p50_s, d.freshness_s[2] as freshness_p95_s, d.freshness_s[3] as freshness_p99_s
from outbox.topic as t
full join pending as p on p.topic = t.topic
left join failing as f on f.topic = t.topic
left join done as d on d.topic = t.topic
order by 1
