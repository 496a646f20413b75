-- Page through all keys of a topic, as its list_keys function does.
--   Takes    p_after: the last key of the page before; null for the first. p_limit: most keys; null for all.
--   Errors   RC002 unknown topic.   RC008 the topic can't list its keys.
create or replace function outbox.list_keys(p_topic text, p_after text default null, p_limit integer default null)
returns setof text
language plpgsql stable
as $$
declare
    v_name text;
begin
    select t.list_keys into v_name from outbox.topic as t where t.topic = p_topic;
    if not found then
        raise exception 'topic % is not registered', pg_catalog.quote_nullable(p_topic)
            using errcode = 'RC002', hint = 'See the registered ones with: select topic from outbox.topic.';
    elsif v_name is null then
        raise exception 'topic % can''t list its keys', p_topic
            using errcode = 'RC008', hint = 'Name a function that can, with outbox.set_topic(…, p_list_keys => ''schema.name'').';
    end if;
    perform outbox.check_routines(null, v_name);
    return query execute pg_catalog.format(
        'select l.key from %I.%I($1, $2) as l (key)', (pg_catalog.parse_ident(v_name))[1], (pg_catalog.parse_ident(v_name))[2]
    ) using p_after, coalesce(p_limit, 2147483647);
end $$;
comment on function outbox.list_keys is 'Page through all keys of a topic.';
