-- Let the roles of recalcd do what is declared, and neither them nor PUBLIC anything else. Every migrate up ends with it,
-- so that new objects are never open to all; an administrator who made the roles later may call it.
--   Needs    the rights of the schema's owner.
--   Takes    p_declared: schema.name of a function like outbox.privileges.
--   Returns  how many statements it took: see outbox.privilege_changes.
--   Warns    of roles that do not exist. The others have their grants nevertheless.
create or replace function outbox.grant_roles(p_declared text default 'outbox.privileges') returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_missing text;
    v_statement text;
    v_count integer := 0;
begin
    select string_agg(r.name, ', ') into v_missing
    from unnest('{recalcd_writer,recalcd_daemon,recalcd_operator,recalcd_reader}'::text[]) as r (name)
    where to_regrole(r.name) is null;
    if v_missing is not null then
        raise warning 'roles that do not exist, and that % may not create: %', current_user, v_missing
            using hint = format('Let an administrator create them (create role NAME), then run: '
                'select outbox.grant_roles(%L); or recalcd migrate up.', p_declared);
    end if;
    for v_statement in select c.statement from outbox.privilege_changes(p_declared) as c (statement) loop
        execute v_statement;
        v_count := v_count + 1;
    end loop;
    return v_count;
end $$;
comment on function outbox.grant_roles is 'Let the roles of recalcd do what is declared, and nobody else anything.';
