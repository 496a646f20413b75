-- Narrow the keys of a claim to suspects, if there are any among them: keys of a batch that vanished with its backend
-- or its daemon are tried again by eighths, so that four crashes convict one key in 500 and acquit the others.
--   Locks    outbox.suspect and outbox.failure rows of convicted keys.
--   Takes    p_keys: distinct. p_limit: the usual size of a batch, in keys.
--   Returns  keys: p_keys when nobody is suspected. Else the most suspect of them, few enough; suspects is true then.
--            A key that vanished a batch all by itself is charged a failure instead, and left out: its turn comes
--            when that falls due.
create or replace function outbox.single_out(p_topic text, p_keys text[], p_limit integer, out keys text[], out suspects boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_crash_count integer;
begin
    perform outbox.convict(p_topic, s.key)
    from outbox.suspect as s
    where s.topic = p_topic and s.key = any (p_keys) and s.was_alone
      and pg_try_advisory_xact_lock(outbox.key_lock_id(s.topic, s.key));

    select max(s.crash_count) into v_crash_count
    from outbox.suspect as s
    where s.topic = p_topic and s.key = any (p_keys);
    suspects := v_crash_count is not null;
    keys := p_keys;
    if suspects then
        keys := array(
            select s.key from outbox.suspect as s
            where s.topic = p_topic and s.key = any (p_keys) and s.crash_count = v_crash_count
            order by s.key
            limit greatest(1, p_limit >> least(3 * v_crash_count, 30))
        );
    end if;
end $$;
comment on function outbox.single_out is 'Narrow the keys of a claim to suspects, if there are any among them.';
