-- Take the next batch: look at the head of the queue of each topic in turn, and take the keys found there. The first
-- statement of a daemon's transaction; outbox.recalculate, outbox.settle and the commit follow, as in outbox.run_batch.
--   Locks    the head's event rows and due failure rows, skip locked, for as long as it looks: what it does not get the
--            key's lock of must not wait for the end of this batch. Then as outbox.claim_keys. (So a key whose events
--            somebody was quick to take meanwhile may be among the keys without any: it is recalculated once more.)
--   Needs    read committed.
--   Takes    p_hints: what this daemon remembers, per topic; only hints, {} is always right:
--                {"reports.student": {"above": 1234, "keys": 500, "skip": false}}
--                above: look only at later events, since the start of the index may be full of dead rows.
--                keys: most keys of the batch; with '' for the topic, of any topic's.  skip: leave the topic alone.
--                limited, with '' for the topic: take nothing of a topic whose limit is not the session's statement_timeout.
--            p_after: the topic served last; the turn goes to the one behind it.
--            p_retries_first: due failures before new events, or the other way round. They never share a batch, so
--            that a failing key spoils nobody else's.
--   Returns  topic: null when there was nothing to take, else as outbox.claim_keys; keys may be empty when all that was
--            done is folding, and are null when nothing was taken for the topic's limit. head_event_id: up to here the head
--            was taken. is_full: there may be more behind it.
--            suspects: the keys were in a batch that vanished.
--   Errors   RC001 wrong isolation level: give up.
create or replace function outbox.claim(
    p_hints jsonb default '{}', p_after text default '', p_retries_first boolean default false,
    out topic text, out keys text[], out event_count bigint, out oldest_event_at timestamptz, out started_at timestamptz,
    out reasons text[], out traceparent text, out folded_count bigint, out head_event_id bigint, out is_full boolean, out suspects boolean
)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_topic record;
    v_limit integer;
    v_above bigint;
    v_head text[];
    v_head_first bigint[];
    v_busy text[];
    v_busy_first bigint[];
    v_busy_due text[];
    v_due text[];
    v_is_due boolean;
    v_keys text[];
    v_innocent text[];
    v_limited constant boolean := coalesce((p_hints -> '' ->> 'limited')::boolean, false);
    -- Before outbox.claim_keys sets that of a topic.
    v_session_limit_s constant numeric := extract(epoch from current_setting('statement_timeout')::interval);
begin
    -- Before 18, a scan type that is switched off counts as a huge cost, and huge costs are compiled: 100 ms each time.
    perform set_config('jit', 'off', true);
    for v_topic in
        select t.topic, t.batch_keys, t.statement_timeout_s from outbox.topic as t
        where t.paused_at is null and not coalesce((p_hints -> t.topic ->> 'skip')::boolean, false)
        order by t.topic <= p_after, t.topic
    loop
        v_limit := least(v_topic.batch_keys, (p_hints -> v_topic.topic ->> 'keys')::integer, (p_hints -> '' ->> 'keys')::integer);
        v_above := coalesce((p_hints -> v_topic.topic ->> 'above')::bigint, 0);
        v_busy := '{}';
        v_busy_first := '{}';
        v_busy_due := '{}';
        for v_look in 1 .. 4 loop
            -- By a bitmap a look at the head would read all of a backlog first.
            perform set_config('enable_bitmapscan', 'off', true);
            begin
                select h.keys, h.first_event_ids, h.last_event_id, h.is_full into v_head, v_head_first, head_event_id, is_full
                from outbox.list_head(v_topic.topic, v_above, v_limit, v_busy) as h;
                v_due := array(
                    select f.key from outbox.failure as f
                    where f.topic = v_topic.topic and f.state = 'retrying' and f.next_attempt_at <= clock_timestamp()
                      and f.key <> all (v_busy_due)
                    order by f.next_attempt_at
                    limit v_limit
                    for update skip locked
                );
                raise exception using errcode = 'RC019';  -- what was read stays
            exception when sqlstate 'RC019' then
                null;
            end;
            v_is_due := v_head = '{}' or p_retries_first and v_due <> '{}';
            v_keys := case when v_is_due then v_due else v_head end;
            exit when v_keys = '{}';
            if v_limited and v_topic.statement_timeout_s <> v_session_limit_s then
                topic := v_topic.topic;
                keys := null;  -- an earlier topic's claim may have left none
                return;
            end if;

            suspects := false;
            v_innocent := '{}';
            if exists (select from outbox.suspect as s where s.topic = v_topic.topic) then
                v_innocent := array(
                    select k.key from unnest(v_keys) as k (key)
                    where not exists (select from outbox.suspect as s where s.topic = v_topic.topic and s.key = k.key)
                );
                select s.keys, s.suspects into v_keys, suspects from outbox.single_out(v_topic.topic, v_keys, v_limit) as s;
            end if;
            -- But where many events wait, many are of these keys, and a bitmap visits their pages once instead of once each.
            perform set_config('enable_bitmapscan', coalesce(is_full, false)::text, true);
            select c.keys, c.event_count, c.oldest_event_at, c.started_at, c.reasons, c.traceparent, c.folded_count
            into keys, event_count, oldest_event_at, started_at, reasons, traceparent, folded_count
            from outbox.claim_keys(v_topic.topic, v_keys, v_above) as c;
            if suspects and keys = '{}' and folded_count = 0 then  -- somebody tries them: the others need not wait
                suspects := false;
                select c.keys, c.event_count, c.oldest_event_at, c.started_at, c.reasons, c.traceparent, c.folded_count
                into keys, event_count, oldest_event_at, started_at, reasons, traceparent, folded_count
                from outbox.claim_keys(v_topic.topic, v_innocent, v_above) as c;
            end if;
            if keys <> '{}' or folded_count > 0 then
                topic := v_topic.topic;
                -- An event that stays behind, because its key is busy, must not fall below the caller's mark.
                select coalesce(min(h.first) - 1, head_event_id) into head_event_id
                from unnest(v_busy || v_head, v_busy_first || v_head_first) as h (key, first)
                where not exists (select from unnest(keys) as k (key) where k.key = h.key);
                return;
            end if;
            -- A key may be busy for long, with as many events as a look sees; others are behind them. But whoever has
            -- thousands of keys busy must not fill the lock table by what is tried here.
            if v_is_due then
                v_busy_due := v_busy_due || v_due;
            else
                exit when not is_full;
                v_busy := v_busy || v_head;
                v_busy_first := v_busy_first || v_head_first;
            end if;
        end loop;
    end loop;
end $$;
comment on function outbox.claim is 'Take the next batch of keys, of whichever topic has the turn.';
