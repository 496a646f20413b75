-- Forget that keys failed, without recalculating them: each stays as stale as it is until its next event.
--   Locks    the keys (outbox.lock_keys, waits), so that no daemon is about to fold an event into a row that vanishes.
--   Needs    read committed.
--   Takes    p_keys: distinct, at most a thousand or so: each holds a lock.
--   Returns  the keys that had failed, sorted; the others have nothing to forget.
--   Errors   RC001, RC003 as outbox.lock_keys.
create or replace function outbox.drop_failures(p_topic text, p_keys text[]) returns text[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_dropped text[];
begin
    perform outbox.lock_keys(p_topic, p_keys);
    with dropped as (
        delete from outbox.failure as f where f.topic = p_topic and f.key = any (p_keys)
        returning f.key
    )
    select coalesce(array_agg(d.key order by d.key), '{}') into v_dropped from dropped as d;
    delete from outbox.suspect as s where s.topic = p_topic and s.key = any (v_dropped);
    return v_dropped;
end $$;
comment on function outbox.drop_failures is 'Forget that keys failed, without recalculating them.';
