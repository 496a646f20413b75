-- Run a whole batch in one statement: claim, recalculate and settle, without a word from the client in between. The
-- statement's end is the commit. No search_path and no savepoint of its own, as outbox.recalculate has none.
--   Locks    as outbox.claim, then as outbox.recalculate and outbox.settle.
--   Needs    read committed, and no transaction around it. Each step is a statement of its own in here, too.
--   Takes    p_hints, p_after, p_retries_first: as outbox.claim; without limited among the hints, no topic's limit is kept.
--            p_daemon_id, p_kind, p_keep_history: as outbox.settle.
--   Returns  as outbox.claim, and changed_keys, and recalculate_ms: what the call took. Or nothing but a topic that has the
--            turn, its statement_timeout_s, to which the session must be set first, since in here it is too late, and after:
--            what p_after must be for the topic to have the turn then.
--   Tells    its client how far it is, by an INFO of SQLSTATE RC018 before it calls the routine, with the claim as JSON for
--            its detail, and another one behind the call. So whatever fails, or ends the session, is known to be a key's
--            fault or not, and which keys' it may be.
--   Errors   as outbox.claim, outbox.recalculate and outbox.settle.
create or replace function outbox.run_batch(
    p_hints jsonb, p_after text, p_retries_first boolean, p_daemon_id uuid, p_kind text, p_keep_history boolean,
    out topic text, out keys text[], out event_count bigint, out oldest_event_at timestamptz, out started_at timestamptz,
    out reasons text[], out traceparent text, out folded_count bigint, out head_event_id bigint, out is_full boolean,
    out suspects boolean, out changed_keys text[], out recalculate_ms real, out statement_timeout_s integer, out after text
)
language plpgsql volatile
as $$
declare
    v_claim json;
    v_called_at timestamptz;
begin
    select c.topic, c.keys, c.event_count, c.oldest_event_at, c.started_at, c.reasons, c.traceparent, c.folded_count,
           c.head_event_id, c.is_full, c.suspects, pg_catalog.row_to_json(c)
    into topic, keys, event_count, oldest_event_at, started_at, reasons, traceparent, folded_count,
         head_event_id, is_full, suspects, v_claim
    from outbox.claim(p_hints, p_after, p_retries_first) as c;
    if topic is null then
        return;
    end if;
    if keys is null then
        select t.statement_timeout_s, (select coalesce(max(o.topic), '') from outbox.topic as o where o.topic < t.topic)
        into statement_timeout_s, after
        from outbox.topic as t
        where t.topic = run_batch.topic;
        return;
    end if;
    recalculate_ms := 0;
    if keys = '{}' then
        changed_keys := '{}';
        return;
    end if;

    raise info 'claimed' using errcode = 'RC018', detail = v_claim;
    v_called_at := pg_catalog.clock_timestamp();
    changed_keys := outbox.recalculate(topic, keys);
    recalculate_ms := extract(epoch from pg_catalog.clock_timestamp() - v_called_at) * 1000;
    raise info 'recalculated' using errcode = 'RC018';
    perform outbox.settle(
        topic, keys, changed_keys, event_count, oldest_event_at, reasons, started_at, recalculate_ms, p_daemon_id, p_kind,
        p_keep_history
    );
end $$;
comment on function outbox.run_batch is 'Run a whole batch in one statement: claim, recalculate and settle.';
