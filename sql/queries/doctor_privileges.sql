-- What this role may not do in schema outbox, though a daemon must: whatever recalcd_daemon was granted; where there is no
-- such role, everything. Asks the catalogs alone, since this role may not be allowed to call anything.
--   name: table, column or routine. missing: the privilege to grant.
with role as (
    select to_regrole('recalcd_daemon')::oid as daemon, to_regnamespace('outbox')::oid as outbox
), needed as (
    select format('table outbox.%I', c.relname) as name, lower(e.privilege_type) as privilege,
           has_table_privilege(c.oid, e.privilege_type) as is_held
    from role as r
    join pg_class as c on c.relnamespace = r.outbox
    cross join aclexplode(c.relacl) as e
    where e.grantee = r.daemon
    union all
    select format('column outbox.%I.%I', c.relname, a.attname), lower(e.privilege_type),
           has_column_privilege(c.oid, a.attnum, e.privilege_type)
    from role as r
    join pg_class as c on c.relnamespace = r.outbox
    join pg_attribute as a on a.attrelid = c.oid
    cross join aclexplode(a.attacl) as e
    where e.grantee = r.daemon
    union all
    select format('table outbox.%I', c.relname), p.privilege, has_table_privilege(c.oid, p.privilege)
    from role as r
    join pg_class as c on c.relnamespace = r.outbox and c.relkind in ('r', 'p') and not c.relispartition
    cross join unnest(array['select', 'insert', 'update', 'delete']) as p (privilege)
    where r.daemon is null and (p.privilege = 'select' or c.relname not in ('migration', 'routine'))
    union all
    select format('routine %s', p.oid::regprocedure), 'execute', has_function_privilege(p.oid, 'execute')
    from role as r
    join pg_proc as p on p.pronamespace = r.outbox
    where r.daemon is null or has_function_privilege(r.daemon, p.oid, 'execute')
    union all
    select 'schema outbox', 'usage', has_schema_privilege(r.outbox, 'usage')
    from role as r
    where r.outbox is not null
)
select n.name, n.privilege as missing from needed as n where not n.is_held order by n.name <> 'schema outbox', 1, 2
