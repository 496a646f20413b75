-- Call a topic's routine for keys. No search_path and no savepoint of its own: the routine finds what a caller in
-- psql would give it, and its errors are the caller's to judge.
--   Locks    what the routine locks; first of all the keys, which the daemon holds already.
--   Needs    read committed, and a statement of its own after the claim.
--   Takes    p_keys: distinct.
--   Returns  the keys whose cached rows changed, each once, in one dimension; null when the routine does not say.
--   Errors   RC004 the routine is gone, or may not be called.   RC005 it returned a key it was not given.   RC013 it
--            changed the role, or made the transaction read-only, so that the batch can't be settled.   And its own.
create or replace function outbox.recalculate(p_topic text, p_keys text[]) returns text[]
language plpgsql volatile
as $$
declare
    v_name text;
    v_found record;
    v_changed text[];
    v_stranger text;
    v_before constant text := pg_catalog.format('%s %s %s', session_user, current_user, pg_catalog.current_setting('transaction_read_only'));
begin
    select t.recalculate into v_name from outbox.topic as t where t.topic = p_topic;
    select f.routine, f.call, f.reports into v_found from outbox.find_recalculate(v_name) as f;
    if v_found.routine is null or not pg_catalog.has_function_privilege(v_found.routine, 'execute') then
        raise exception 'the routine % of topic % is missing, has the wrong signature, or may not be called by %', v_name, p_topic, current_user
            using errcode = 'RC004', hint = 'Create it, grant execute on it, or name another one with outbox.set_topic.';
    end if;
    if v_found.reports then
        execute v_found.call into v_changed using p_keys;
    else
        execute v_found.call using p_keys;
    end if;
    set constraints all immediate;  -- a deferred check that fails at commit could not be laid to any key's charge
    if v_before <> pg_catalog.format('%s %s %s', session_user, current_user, pg_catalog.current_setting('transaction_read_only')) then
        raise exception 'the routine % changed the role or made the transaction read-only', v_name
            using errcode = 'RC013', hint = 'Whoever changes the role sets it back; security definer does so by itself.';
    end if;
    select c.key into v_stranger
    from (select pg_catalog.unnest(v_changed) except select pg_catalog.unnest(p_keys)) as c (key)
    limit 1;
    if found then
        raise exception 'the routine % returned a key it was not given', v_name
            using errcode = 'RC005', detail = pg_catalog.quote_nullable(pg_catalog.left(v_stranger, 40)),  -- it may be anything
            hint = 'Return only keys of p_keys, spelt as they are spelt there, and no null.';
    end if;
    if v_changed is not null then
        v_changed := array(select distinct c.key from pg_catalog.unnest(v_changed) as c (key) order by c.key);
    end if;
    return v_changed;
end $$;
comment on function outbox.recalculate is 'Call a topic''s routine for keys; returns those whose cached rows changed.';
