-- Whether a topic's routine can be called, and says what it changed.
--   $1 topic
--   refused: logins of daemons at work that may not call it, though this role may. One may have what recalcd_daemon has
--            without inheriting it.
select f.routine is not null as exists,
       f.routine is not null and has_function_privilege(f.routine, 'execute') as is_allowed,
       coalesce(f.reports, false) as reports,
       array(
           select distinct a.usename::text
           from pg_stat_activity as a
           join pg_proc as p on p.oid = f.routine
           where a.datname = current_database() and a.application_name in ('recalcd housekeeper', 'recalcd worker')
             and not exists (
                 select from unnest(array[a.usesysid, to_regrole('recalcd_daemon')]) as r (role)
                 where has_schema_privilege(r.role, p.pronamespace, 'usage')
                   and has_function_privilege(r.role, p.oid, 'execute')
             )
           order by 1
       ) as refused
from outbox.topic as t
left join lateral outbox.find_recalculate(t.recalculate) as f on true
where t.topic = $1::text
