-- Whether a topic's routine can be called, and says what it changed.
--   $1 topic
select f.routine is not null as exists,
       f.routine is not null and has_function_privilege(f.routine, 'execute') as is_allowed,
       coalesce(f.reports, false) as reports
from outbox.topic as t
left join lateral outbox.find_recalculate(t.recalculate) as f on true
where t.topic = $1::text
