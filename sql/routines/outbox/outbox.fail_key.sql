-- Note that the recalculation of a key failed, in the transaction that took its events: the row owes what they owed.
--   Locks    the failure row. The caller holds the key's lock.
--   Takes    p_charge: whether the attempt counts; contention is nobody's fault. p_event_count: events taken with it.
--   Returns  the row as it is now. Waits double from retry_base_s to retry_max_s, jittered by up to a half.
create or replace function outbox.fail_key(
    p_topic text, p_key text, p_charge boolean, p_event_count bigint,
    p_sqlstate text, p_message text, p_detail text, p_hint text, p_context text
) returns outbox.failure
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    insert into outbox.failure as f (
        topic, key, state, attempts, event_count, next_attempt_at, sqlstate, message, detail, hint, context
    )
    select p_topic, p_key, d.state, d.attempts, p_event_count,
           clock_timestamp() + make_interval(secs => case
               when d.state = 'dead' then t.retry_max_s
               else least(t.retry_max_s, t.retry_base_s * 2.0 ^ least(greatest(d.attempts - 1, 0), 30)) * (0.5 + random() / 2)
           end),
           p_sqlstate, left(p_message, 1000), left(p_detail, 1000), left(p_hint, 1000), left(p_context, 4000)
    from outbox.topic as t
    left join outbox.failure as old on old.topic = p_topic and old.key = p_key
    cross join lateral (select coalesce(old.attempts, 0) + p_charge::integer as attempts) as a
    cross join lateral (
        select a.attempts, case when a.attempts >= t.max_attempts then 'dead' else 'retrying' end as state
    ) as d
    where t.topic = p_topic
    on conflict (topic, key) do update set
        state = excluded.state, attempts = excluded.attempts, event_count = f.event_count + excluded.event_count,
        last_failed_at = clock_timestamp(), next_attempt_at = excluded.next_attempt_at, sqlstate = excluded.sqlstate,
        message = excluded.message, detail = excluded.detail, hint = excluded.hint, context = excluded.context
    returning f.*
$$;
comment on function outbox.fail_key is 'Note that the recalculation of a key failed.';
