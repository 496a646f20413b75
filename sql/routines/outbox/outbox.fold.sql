-- Fold the events of failing keys into their failure rows, so that they do not clog the head of the outbox. The row
-- goes on owing the recalculation; a dead key earns a try by it, at its next_attempt_at.
--   Locks    event rows, skip locked; the failure rows. The caller holds the keys' locks.
--   Takes    p_keys: distinct keys that have a failure row.
--   Returns  the number of events folded.
create or replace function outbox.fold(p_topic text, p_keys text[]) returns bigint
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_custom_plan
as $$
    with folded as (
        delete from outbox.event as e
        where e.ctid = any (array(
            select d.ctid from outbox.event as d
            where d.topic = p_topic and d.key = any (p_keys)
            for update skip locked
        ))
        returning e.key
    ), by_key as (
        select f.key, count(*) as event_count from folded as f group by f.key
    ), counted as (
        update outbox.failure as f
        set event_count = f.event_count + k.event_count, state = 'retrying'
        from by_key as k
        where f.topic = p_topic and f.key = k.key
        returning k.event_count
    )
    select coalesce(sum(c.event_count), 0)::bigint from counted as c
$$;
comment on function outbox.fold is 'Fold the events of failing keys into their failure rows.';
