-- What this role may not do in schema outbox, though a daemon must.
--   name: table or routine. missing: the privilege to grant.
select format('table outbox.%I', c.relname) as name, p.privilege as missing
from pg_class as c
cross join unnest(array['select', 'insert', 'update', 'delete']) as p (privilege)
where c.relnamespace = to_regnamespace('outbox') and c.relkind in ('r', 'p') and not c.relispartition
  and not has_table_privilege(c.oid, p.privilege)
  and not (c.relname in ('migration', 'routine') and p.privilege <> 'select')
union all
select format('routine %s', r.oid::regprocedure), 'execute'
from pg_proc as r
where r.pronamespace = to_regnamespace('outbox') and not has_function_privilege(r.oid, 'execute')
union all
select 'schema outbox', 'usage'
where to_regnamespace('outbox') is not null and not has_schema_privilege('outbox', 'usage')
order by 1, 2
