-- What is to be granted and revoked, so that the roles may do what is declared, and neither they nor PUBLIC anything else.
--   Takes    p_declared: schema.name of a function like outbox.privileges, which declares all of its schemas.
--   Returns  the statements, those that revoke first. Roles that do not exist are left out; so are grants to anybody else.
--            An object that does not exist is left out too: part of a set may have been taken back.
create or replace function outbox.privilege_changes(p_declared text) returns setof text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return query execute format($query$
        with declared as (
            select r.name as role, btrim(p.name) as privilege, d.kind, o.name as object
            from %s() as d
            cross join regexp_split_to_table(d.roles, ' ') as r (name)
            cross join regexp_split_to_table(d.privileges, ',') as p (name)
            cross join regexp_split_to_table(d.objects, ' ') as o (name)
        ), wanted as (
            select case d.role when 'public' then 'public' else 'recalcd_' || d.role end as role, d.privilege,
                   d.kind || ' ' || coalesce(p.oid::regprocedure::text, d.object) as object
            from declared as d
            left join pg_proc as p on d.kind = 'routine' and d.object = p.pronamespace::regnamespace || '.' || p.proname
            where (d.role = 'public' or to_regrole('recalcd_' || d.role) is not null)
              and case d.kind
                      when 'schema' then to_regnamespace(d.object)::oid
                      when 'table' then to_regclass(d.object)::oid
                      else p.oid
                  end is not null
        ), acl as (
            select 'schema ' || n.oid::regnamespace as object, null as column_name, n.nspacl as acl, n.oid as schema
            from pg_namespace as n
            union all
            select case c.relkind when 'S' then 'sequence ' else 'table ' end || c.oid::regclass, null, c.relacl, c.relnamespace
            from pg_class as c
            union all
            select 'table ' || c.oid::regclass, a.attname, a.attacl, c.relnamespace
            from pg_attribute as a
            join pg_class as c on c.oid = a.attrelid
            union all
            select 'routine ' || p.oid::regprocedure, null, coalesce(p.proacl, acldefault('f', p.proowner)), p.pronamespace
            from pg_proc as p
        ), held as (
            select case e.grantee when 0 then 'public' else e.grantee::regrole::text end as role,
                   lower(e.privilege_type) || coalesce(' (' || quote_ident(a.column_name) || ')', '') as privilege, a.object
            from acl as a
            cross join aclexplode(a.acl) as e
            where a.schema in (select d.object::regnamespace from declared as d where d.kind = 'schema')
              and (e.grantee = 0 or e.grantee::regrole::text in (
                  'recalcd_writer', 'recalcd_daemon', 'recalcd_operator', 'recalcd_reader'
              ))
        ), change as (
            (select 'revoke' as verb, 'from' as preposition, h.object, h.privilege, h.role from held as h
             except select 'revoke', 'from', w.object, w.privilege, w.role from wanted as w)
            union all
            (select 'grant', 'to', w.object, w.privilege, w.role from wanted as w
             except select 'grant', 'to', h.object, h.privilege, h.role from held as h)
        )
        select format('%%s %%s on %%s %%s %%s', c.verb, c.privilege, c.object, c.preposition, c.role)
        from change as c
        order by c.verb desc, c.object, c.role, c.privilege
    $query$, p_declared::regproc);
end $$;
comment on function outbox.privilege_changes is 'What is to be granted and revoked, so that the roles may do what is declared and no more.';
