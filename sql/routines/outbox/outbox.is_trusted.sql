-- Whether a routine may be called with the daemon's rights, or an operator's. That somebody may create things in a schema
-- must not suffice: a namesake planted there would be called in place of the routine that a topic means.
--   Takes    p_owner: of the routine. p_schema_owner: of its schema.
--   Returns  whether the routine's owner has the rights of the schema's owner, of the outbox's, or of an operator.
create or replace function outbox.is_trusted(p_owner oid, p_schema_owner oid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select pg_has_role(p_owner, p_schema_owner, 'usage')
        or pg_has_role(p_owner, (select n.nspowner from pg_namespace as n where n.nspname = 'outbox'), 'usage')
        or coalesce(pg_has_role(p_owner, to_regrole('recalcd_operator'), 'usage'), false)
$$;
comment on function outbox.is_trusted is 'Whether a routine may be called with the rights of the daemon or an operator.';
