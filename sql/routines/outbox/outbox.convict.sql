-- Charge a failure to a key whose recalculation, running alone, ended its own backend or daemon. Three times is dead:
-- each such end may cost every session of the server its connection.
--   Locks    the suspect and the failure row, skip locked: the key is convicted later then. The caller holds its lock.
create or replace function outbox.convict(p_topic text, p_key text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_crash_count integer;
begin
    perform from outbox.failure as f where f.topic = p_topic and f.key = p_key for update skip locked;
    if not found and exists (select from outbox.failure as f where f.topic = p_topic and f.key = p_key) then
        return;
    end if;
    perform from outbox.suspect as s where s.topic = p_topic and s.key = p_key for update skip locked;
    if not found then
        return;
    end if;
    update outbox.suspect as s set was_alone = false
    where s.topic = p_topic and s.key = p_key and s.was_alone
    returning s.crash_count into v_crash_count;
    if not found then
        return;
    end if;
    perform outbox.fail_key(
        p_topic, p_key, true, 0, 'RC006',
        format('the recalculation ended its backend or its daemon %s times, the last time with this key alone', v_crash_count),
        null, 'Call the procedure for this key on a server that may crash; look for memory, recursion, pg_terminate_backend.', null
    );
    update outbox.failure as f
    set state = 'dead', next_attempt_at = clock_timestamp() + make_interval(secs => t.retry_max_s)
    from outbox.topic as t
    where t.topic = p_topic and f.topic = p_topic and f.key = p_key and f.attempts >= 3;
end $$;
comment on function outbox.convict is 'Charge a failure to a key whose recalculation ended its own backend or daemon.';
