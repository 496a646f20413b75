-- Which topics have drifted keys, and since when the audit has visited all of their keys.
select t.topic, coalesce(d.drifted_keys, 0)::bigint as drifted_keys, d.first_found_at, a.last_round_started_at as audited_since
from outbox.topic as t
left join (
    select d.topic, count(*) as drifted_keys, min(d.found_at) as first_found_at from outbox.drift as d group by d.topic
) as d on d.topic = t.topic
left join outbox.audit as a on a.topic = t.topic
order by t.topic
