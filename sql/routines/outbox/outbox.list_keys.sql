-- Page through all keys of a topic, as its list_keys function does.
--   Takes    p_after: the last key of the page before; null for the first. p_limit: most keys; null for all.
--   Errors   RC002 unknown topic.   RC008 the topic can't list its keys.   RC020 its function does not heed p_after: whoever
--            pages through the keys would never come to an end.
create or replace function outbox.list_keys(p_topic text, p_after text default null, p_limit integer default null)
returns setof text
language plpgsql stable
as $$
declare
    v_name text;
    v_key text;
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
    for v_key in
        execute pg_catalog.format(
            'select l.key from %I.%I($1, $2) as l (key)', (pg_catalog.parse_ident(v_name))[1], (pg_catalog.parse_ident(v_name))[2]
        ) using p_after, coalesce(p_limit, 2147483647)
    loop
        if v_key = p_after then
            raise exception 'function % of topic % lists key % among those behind it', v_name, p_topic, pg_catalog.quote_literal(v_key)
                using errcode = 'RC020', hint = 'Let it list, in order, the keys behind p_after only; all of them when that is null.';
        end if;
        return next v_key;
    end loop;
end $$;
comment on function outbox.list_keys is 'Page through all keys of a topic.';
