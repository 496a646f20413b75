-- Page through a part of a topic's keys. A topic that can do so has a second function of the name of its list_keys, with
-- one parameter more: (p_after text, p_limit integer, p_part jsonb) returning setof text.
--   Takes    p_part: which keys, in the topic's own words: {"cohort": "7A"}, {"missing": true}; {} for all, which any
--            topic that lists its keys understands. p_after, p_limit: as outbox.list_keys.
--   Errors   RC002 unknown topic.   RC008 the topic can't list its keys, or no part of them.   22023 it has no such part.
create or replace function outbox.list_part(
    p_topic text, p_part jsonb, p_after text default null, p_limit integer default null
) returns setof text
language plpgsql stable
as $$
declare
    v_name text[];
begin
    if p_part = '{}' then
        return query select k.key from outbox.list_keys(p_topic, p_after, p_limit) as k (key);
        return;
    end if;
    select pg_catalog.parse_ident(t.list_keys) into v_name
    from outbox.topic as t
    join pg_catalog.pg_namespace as n on n.nspname = (pg_catalog.parse_ident(t.list_keys))[1]
    join pg_catalog.pg_proc as p on p.pronamespace = n.oid and p.proname = (pg_catalog.parse_ident(t.list_keys))[2]
    where t.topic = p_topic and p.prokind = 'f' and p.proretset and p.prorettype = 'pg_catalog.text'::pg_catalog.regtype
      and p.proargtypes::pg_catalog.text = '25 23 3802' and outbox.is_trusted(p.proowner, n.nspowner);
    if not found then
        perform outbox.list_keys(p_topic, p_limit => 0);  -- RC002 or RC008, when that is what is wrong
        raise exception 'topic % can''t list a part of its keys', p_topic
            using errcode = 'RC008', hint = 'Give its list_keys function a namesake with the parameters '
                '(p_after text, p_limit integer, p_part jsonb).';
    end if;
    return query execute pg_catalog.format('select l.key from %I.%I($1, $2, $3) as l (key)', v_name[1], v_name[2])
        using p_after, coalesce(p_limit, 2147483647), p_part;
end $$;
comment on function outbox.list_part is 'Page through a part of a topic''s keys.';
