-- The cached rows of keys, as the topic's describe function shows them.
--   Takes    p_keys.
--   Returns  one element per key, in their order; null when the topic has no such function.
--   Errors   RC004 the function is gone, or has another signature.   And its own.
create or replace function outbox.describe(p_topic text, p_keys text[]) returns jsonb[]
language plpgsql volatile  -- or it would not see what its transaction has just recalculated
as $$
declare
    v_name text := (select t.describe from outbox.topic as t where t.topic = p_topic);
    v_described jsonb[];
begin
    if v_name is null then
        return null;
    end if;
    perform outbox.check_routines(null, null, v_name);
    execute pg_catalog.format(
        'select array(select %I.%I(k.key) from unnest($1) with ordinality as k (key, position) order by k.position)',
        (pg_catalog.parse_ident(v_name))[1], (pg_catalog.parse_ident(v_name))[2]
    ) into v_described using p_keys;
    return v_described;
end $$;
comment on function outbox.describe is 'The cached rows of keys as jsonb, if the topic has a function that shows them.';
