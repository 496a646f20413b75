-- Lock keys against any other recalculation of theirs, until the transaction ends. The first statement of every
-- recalculation procedure: in a statement of its own, so that the next one's snapshot is younger than the locks.
--   Locks    the keys' transaction-level advisory locks, in the order of their ids; waits for them. Re-entrant.
--   Needs    read committed: elsewhere the snapshot predates the locks, and an old result overwrites a newer one.
--   Takes    p_keys: any order, repeats are harmless.
--   Errors   RC001 wrong isolation level: give up.   RC003 a key is null: give up.
create or replace function outbox.lock_keys(p_topic text, p_keys text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_lock_id bigint;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'recalculating under % could overwrite newer results with older ones',
            current_setting('transaction_isolation')
            using errcode = 'RC001', hint = 'Begin the transaction with: isolation level read committed.';
    end if;
    if p_topic is null or p_keys is null or array_position(p_keys, null) is not null then
        raise exception 'a key to recalculate is null'
            using errcode = 'RC003', hint = 'Pass an array of keys without nulls.';
    end if;
    for v_lock_id in
        select distinct outbox.key_lock_id(p_topic, k.key) as lock_id
        from unnest(p_keys) as k (key)
        order by lock_id
    loop
        perform pg_advisory_xact_lock(v_lock_id);
    end loop;
end $$;
comment on function outbox.lock_keys is 'Lock keys against other recalculations until the transaction ends; waits. First statement of a recalculation procedure.';
