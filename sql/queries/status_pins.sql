-- Who keeps deleted rows of this database from being vacuumed: the horizon is held where their snapshot is. Oldest first.
--   name: what an operator knows it by. pid: of a session. age_s: null where nobody notes when it began.
--   age_xids: how many transactions ago.
with pin as (
    select case when a.backend_type = 'walsender' then 'standby' else 'session' end as kind,
           coalesce(nullif(a.application_name, ''), a.backend_type, 'unknown') as name, a.pid, a.usename::text as role,
           a.state, extract(epoch from clock_timestamp() - a.xact_start)::double precision as age_s,
           greatest(age(a.backend_xmin), age(a.backend_xid)) as age_xids
    from pg_stat_activity as a
    where a.pid <> pg_backend_pid()
      and (a.datname = current_database() or a.backend_type = 'walsender')
      and a.backend_type <> 'autovacuum worker'
      and (a.backend_xmin is not null or a.backend_xid is not null)
    union all
    select 'slot', s.slot_name::text, s.active_pid, null, case when s.active then 'active' else 'inactive' end, null, age(s.xmin)
    from pg_replication_slots as s
    where s.xmin is not null
    union all
    select 'prepared', p.gid, null, p.owner::text, 'prepared',
           extract(epoch from clock_timestamp() - p.prepared)::double precision, age(p.transaction)
    from pg_prepared_xacts as p
    where p.database = current_database()
)
select p.kind, p.name, p.pid, p.role, p.state, p.age_s, p.age_xids::bigint as age_xids
from pin as p
order by p.age_xids desc
