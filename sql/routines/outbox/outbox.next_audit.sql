-- Take the next keys to verify in the background. Daemons share one round per topic; the cursor moves before the keys are
-- looked at, so that one that stops its daemon does not stop the round.
--   Locks    the topic's row in outbox.audit, skip locked.
--   Takes    p_limit: most keys.
--   Returns  the keys; {} at the end of a round, or when another daemon is here.
--   Errors   RC002 unknown topic.   RC004, RC008 the topic can't list its keys.
create or replace function outbox.next_audit(p_topic text, p_limit integer) returns text[]
language plpgsql volatile
as $$
declare
    v_after text;
    v_keys text[];
begin
    if not exists (select from outbox.audit as a where a.topic = p_topic) then
        insert into outbox.audit (topic) values (p_topic) on conflict (topic) do nothing;
    end if;
    select a.after_key into v_after from outbox.audit as a where a.topic = p_topic for update skip locked;
    if not found then
        return '{}';
    end if;
    v_keys := array(select l.key from outbox.list_keys(p_topic, v_after, p_limit) as l (key));
    if v_keys = '{}' then
        update outbox.audit as a
        set after_key = null, round_started_at = null,
            last_round_started_at = coalesce(a.round_started_at, pg_catalog.clock_timestamp())
        where a.topic = p_topic;
    else
        update outbox.audit as a
        set after_key = v_keys[pg_catalog.cardinality(v_keys)],
            round_started_at = coalesce(a.round_started_at, pg_catalog.clock_timestamp())
        where a.topic = p_topic;
    end if;
    return v_keys;
end $$;
comment on function outbox.next_audit is 'Take the next keys of a topic to verify in the background.';
