-- Finish a batch, as the last statement before its commit: clear what was held against its keys, tell the readers
-- which changed, keep the history.
--   Locks    failure, suspect and drift rows of the keys, whose locks the caller holds. NOTIFY's commit lock, if any changed.
--   Takes    what outbox.claim_keys returned, and what the recalculation said and took.
--            p_kind: live, replay, backfill or repair. p_keep_history: false writes no row in outbox.batch.
--   Notifies channel recalculated with {"topic": …, "keys": […]}, in as many payloads as their limit of 8,000 bytes asks;
--            nothing when the NOTIFY queue is half full. Once it is full, every commit that notifies fails, and what a
--            reader is told late is a hint, but the batch is the promise.
create or replace function outbox.settle(
    p_topic text, p_keys text[], p_changed_keys text[], p_event_count bigint, p_oldest_event_at timestamptz,
    p_reasons text[], p_started_at timestamptz, p_recalculate_ms real, p_daemon_id uuid, p_kind text, p_keep_history boolean
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
    delete from outbox.failure as f where f.topic = p_topic and f.key = any (p_keys);
    delete from outbox.suspect as s where s.topic = p_topic and s.key = any (p_keys);
    delete from outbox.drift as d where d.topic = p_topic and d.key = any (p_keys);
    if p_keep_history then
        insert into outbox.batch (
            topic, keys, changed_keys, event_count, oldest_event_at, reasons, started_at, recalculate_ms, daemon_id, kind
        )
        values (
            p_topic, p_keys, p_changed_keys, p_event_count, p_oldest_event_at, p_reasons, p_started_at, p_recalculate_ms,
            p_daemon_id, p_kind
        );
    end if;
    perform pg_notify('recalculated', jsonb_build_object('topic', p_topic, 'keys', c.keys)::text)
    from (
        -- A key takes at most 255 characters of 6 bytes in JSON, a topic 100: no chunk reaches the limit.
        select jsonb_agg(k.key) as keys
        from (
            select u.key, sum(octet_length(to_jsonb(u.key)::text) + 2) over (order by u.ordinality) / 5000 as chunk
            from unnest(p_changed_keys) with ordinality as u (key, ordinality)
        ) as k
        group by k.chunk
    ) as c
    where pg_notification_queue_usage() < 0.5;
end $$;
comment on function outbox.settle is 'Finish a batch before its commit: clear failures, notify readers, keep the history.';
