-- What waits, fails and has drifted, per registered topic, at a price that does not grow with the backlog: no more than
-- $1 events of a topic are counted.
--   $1 most events to count
select t.topic, t.paused_at is not null as is_paused, p.pending_events, coalesce(f.retrying_keys, 0)::bigint as retrying_keys,
       coalesce(f.dead_keys, 0)::bigint as dead_keys, coalesce(d.drifted_keys, 0)::bigint as drifted_keys,
       coalesce(extract(epoch from clock_timestamp() - o.enqueued_at), 0)::double precision as oldest_claimable_s
from outbox.topic as t
cross join lateral (
    select count(*) as pending_events
    from (select from outbox.event as e where e.topic = t.topic limit $1::bigint) as e
) as p
left join lateral (
    select e.enqueued_at
    from outbox.event as e
    where e.topic = t.topic
      and not exists (
          select from outbox.failure as f
          where f.topic = e.topic and f.key = e.key and f.next_attempt_at > clock_timestamp()
      )
    order by e.event_id
    limit 1
) as o on true
left join (
    select f.topic, count(*) filter (where f.state = 'retrying') as retrying_keys,
           count(*) filter (where f.state = 'dead') as dead_keys
    from outbox.failure as f
    group by f.topic
) as f on f.topic = t.topic
left join (select d.topic, count(*) as drifted_keys from outbox.drift as d group by d.topic) as d on d.topic = t.topic
order by t.topic
