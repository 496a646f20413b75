-- Recalculate keys to see whether their cached rows are what they should be; take the recalculation back, note which
-- keys drifted. Whatever drifted is mended by a batch of its own.
--   Locks    the keys' advisory locks, tried and never waited for; then what the topic's routine locks.
--   Needs    read committed.
--   Takes    p_keys: distinct.
--   Returns  checked_keys: the rest is busy, or owes a failed recalculation. drifted_keys: those whose recalculation
--            changed a row though nothing is pending. A key whose event waits is late, not drifted: its event was
--            committed with its change, and nobody else can take the event while we hold the key.
--            cached, truth: the rows of each drifted key before and after; null when the topic can't describe them.
--   Errors   RC001 wrong isolation level.   RC004, RC005 and the routine's own.   RC009 the routine does not say what changed.
--            55P03 somebody holds what the routine wants to lock for more than five seconds.
create or replace function outbox.find_drift(
    p_topic text, p_keys text[], out checked_keys text[], out drifted_keys text[], out cached jsonb[], out truth jsonb[]
)
language plpgsql volatile
as $$
declare
    v_changed text[];
begin
    perform pg_catalog.set_config('lock_timeout', '5s', true), pg_catalog.set_config('jit', 'off', true);
    checked_keys := array(
        select k.key
        from (select u.key from pg_catalog.unnest(p_keys) as u (key) order by u.key) as k
        where pg_catalog.pg_try_advisory_xact_lock(outbox.key_lock_id(p_topic, k.key))
    );
    checked_keys := array(
        select k.key from pg_catalog.unnest(checked_keys) as k (key)
        where not exists (select from outbox.failure as f where f.topic = p_topic and f.key = k.key)
    );
    drifted_keys := '{}';
    if checked_keys = '{}' then
        return;
    end if;
    perform outbox.lock_keys(p_topic, checked_keys);
    begin
        v_changed := outbox.recalculate(p_topic, checked_keys);
        if v_changed is null then
            raise exception 'the routine of topic % does not say which keys it changed, so nobody can tell drift', p_topic
                using errcode = 'RC009', hint = 'Let it return them: (in p_keys text[], inout p_changed_keys text[]).';
        end if;
        drifted_keys := array(
            select k.key from pg_catalog.unnest(v_changed) as k (key)
            where not outbox.is_pending(p_topic, k.key)
            order by k.key
        );
        truth := outbox.describe(p_topic, drifted_keys);
        raise exception 'taken back' using errcode = 'RC012';  -- variables keep their values; the keys stay locked
    exception when sqlstate 'RC012' then
        null;
    end;
    cached := outbox.describe(p_topic, drifted_keys);
    delete from outbox.drift as d
    where d.topic = p_topic and d.key = any (checked_keys) and d.key <> all (drifted_keys);
    insert into outbox.drift (topic, key)
    select p_topic, k.key from pg_catalog.unnest(drifted_keys) as k (key)
    on conflict (topic, key) do nothing;
end $$;
comment on function outbox.find_drift is 'Recalculate keys to see whether their cached rows are what they should be; keeps nothing but the names of those that are not.';
