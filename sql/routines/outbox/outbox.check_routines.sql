-- Refuse the names of routines that a topic could not use; null is not checked.
--   Errors   RC004 no such routine, one of another signature, or one whose owner is not trusted; the hint says which it
--            should be.
create or replace function outbox.check_routines(p_recalculate text, p_list_keys text, p_describe text default null) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_recalculates boolean := false;
    v_lists boolean := false;
    v_describes boolean := false;
begin
    begin
        v_recalculates := (select f.routine is not null from outbox.find_recalculate(p_recalculate) as f);
        v_lists := exists (
            select from pg_proc as p
            join pg_namespace as n on n.oid = p.pronamespace
            where array[n.nspname::text, p.proname::text] = parse_ident(p_list_keys)
              and p.prokind = 'f' and p.proretset and p.prorettype = 'text'::regtype
              and p.proargtypes::text = '25 23' and outbox.is_trusted(p.proowner, n.nspowner)
        );
        v_describes := exists (
            select from pg_proc as p
            join pg_namespace as n on n.oid = p.pronamespace
            where array[n.nspname::text, p.proname::text] = parse_ident(p_describe)
              and p.prokind = 'f' and not p.proretset and p.prorettype = 'jsonb'::regtype
              and p.proargtypes::text = '25' and outbox.is_trusted(p.proowner, n.nspowner)
        );
    exception when invalid_parameter_value then
        null;  -- parse_ident: one of them is no name at all, such as schema.name(text[]); said below
    end;
    if p_recalculate is not null and not v_recalculates then
        raise exception 'no routine % can recalculate keys', quote_literal(p_recalculate)
            using errcode = 'RC004', hint = format(
                'Name it schema.name, with the signature: procedure %s(in p_keys text[], inout p_changed_keys text[]), '
                'or: function %1$s(p_keys text[]) returns text[], volatile. Its owner must own the schema, too, or be an operator.',
                p_recalculate);
    end if;
    if p_list_keys is not null and not v_lists then
        raise exception 'no function % can list keys', quote_literal(p_list_keys)
            using errcode = 'RC004', hint = format(
                'Name it schema.name, with the signature: function %s(p_after text, p_limit integer) returns setof text. '
                'Its owner must own the schema, too, or be an operator.', p_list_keys);
    end if;
    if p_describe is not null and not v_describes then
        raise exception 'no function % can describe a key', quote_literal(p_describe)
            using errcode = 'RC004', hint = format(
                'Name it schema.name, with the signature: function %s(p_key text) returns jsonb. '
                'Its owner must own the schema, too, or be an operator.', p_describe);
    end if;
end $$;
comment on function outbox.check_routines is 'Refuse the names of routines that a topic could not use.';
