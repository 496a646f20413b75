-- Take keys: lock them, then take every visible event of theirs out of the outbox. What is taken commits with the
-- recalculation that follows in the same transaction, or comes back when that rolls back.
--   Locks    the keys' advisory locks, tried in sorted order and never waited for; their failure rows, skip locked; then
--            the event rows, as outbox.take_events: those of a locked key are only ever taken by the holder of its lock.
--   Needs    read committed. Each step is a statement of its own with a younger snapshot; the recalculation must be a
--            later statement still. Otherwise an older result may overwrite a newer one, for ever.
--   Takes    p_keys: distinct. p_above: leave events up to this id for a later sweep.
--   Returns  keys: those taken, sorted; the rest is busy elsewhere, or folded. event_count, oldest_event_at, reasons: of
--            their events. traceparent: of up to 32 traces among them, separated by commas. One text, since an array
--            would be another signature. started_at: what was committed by then is included.
--            folded_count: events of keys in backoff, moved into their failure rows.
--            statement_timeout (the topic's), lock_timeout, idle_in_transaction_session_timeout, jit and
--            client_min_messages are set for the rest of the transaction.
--   Errors   RC001 wrong isolation level: give up.
create or replace function outbox.claim_keys(
    p_topic text, p_keys text[], p_above bigint default 0,
    out keys text[], out event_count bigint, out oldest_event_at timestamptz, out started_at timestamptz,
    out reasons text[], out traceparent text, out folded_count bigint
)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
    v_locked text[];
    v_owed text[];
    v_free text[];
    v_deferred text[];
    v_events tid[];
    v_patient_until timestamptz;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'claiming under % could overwrite newer results with older ones', current_setting('transaction_isolation')
            using errcode = 'RC001', hint = 'Begin the transaction with: isolation level read committed.';
    end if;

    -- For the rest of the transaction. Waiting for somebody else's lock is contention, not work, and must be told as
    -- that before the statement's time is up; a client that is gone must not keep the keys' locks; compiling short
    -- statements costs more than it saves; nobody reads notices.
    perform set_config('lock_timeout', least(5000, t.statement_timeout_s * 500) || 'ms', true),
            set_config('idle_in_transaction_session_timeout', '30s', true),
            set_config('jit', 'off', true),
            set_config('client_min_messages', 'warning', true),
            set_config('statement_timeout', t.statement_timeout_s || 's', true)
    from outbox.topic as t
    where t.topic = p_topic;

    v_locked := array(
        select k.key
        from (select u.key from unnest(p_keys) as u (key) order by u.key) as k
        where pg_try_advisory_xact_lock(outbox.key_lock_id(p_topic, k.key))
    );

    keys := v_locked;
    folded_count := 0;
    v_owed := array(select f.key from outbox.failure as f where f.topic = p_topic and f.key = any (v_locked));
    if v_owed <> '{}' then
        -- Who has such a row locked, be it a transaction that somebody forgot, keeps this key waiting and no other. But
        -- another daemon's look at what is due has it for a moment.
        v_patient_until := clock_timestamp() + interval '20 ms';
        loop
            v_free := array(
                select f.key from outbox.failure as f
                where f.topic = p_topic and f.key = any (v_owed)
                for update skip locked
            );
            exit when cardinality(v_free) = cardinality(v_owed) or clock_timestamp() > v_patient_until;
            perform pg_sleep(0.001);
        end loop;
        v_deferred := array(
            select f.key from outbox.failure as f
            where f.topic = p_topic and f.key = any (v_free) and f.next_attempt_at > clock_timestamp()
        );
        if v_deferred <> '{}' then
            folded_count := outbox.fold(p_topic, v_deferred);
        end if;
        keys := array(
            select u.key from unnest(v_locked) as u (key)
            where u.key <> all (v_deferred) and (u.key <> all (v_owed) or u.key = any (v_free))
        );
    end if;
    started_at := clock_timestamp();
    begin
        -- For few keys where few events wait no plan can read many, and making one takes longer than the fetch. Else planned
        -- each time: a plan made while the table was all but empty reads every event of the topic, and would be kept
        -- through a burst: with 300,000 pending a claim took 2.4 s instead of 0.1. The other plans may stay.
        if cardinality(keys) > 8 or current_setting('enable_bitmapscan')::boolean then
            perform set_config('plan_cache_mode', 'force_custom_plan', true);
        end if;
        select t.event_count, t.oldest_event_at, t.reasons, t.traceparent
        into event_count, oldest_event_at, reasons, traceparent
        from outbox.take_events(p_topic, keys, p_above) as t;
        return;
    exception when lock_not_available or deadlock_detected then  -- somebody keeps one of them locked: those that are free
        execute '
            select array(
                select e.ctid from outbox.event as e
                where e.topic = $1 and e.key = any ($2) and e.event_id > $3
                for update skip locked
            )' into v_events using p_topic, keys, p_above;
    end;
    with taken as (
        delete from outbox.event as e
        where e.ctid = any (v_events)
        returning e.enqueued_at, e.reason, e.traceparent
    ), by_reason as (
        select t.reason, count(*) as event_count, min(t.enqueued_at) as oldest_event_at
        from taken as t
        group by t.reason
    ), traced as (
        select distinct t.traceparent from taken as t where t.traceparent is not null limit 32
    )
    select coalesce(sum(r.event_count), 0), min(r.oldest_event_at), (select string_agg(d.traceparent, ',') from traced as d),
           coalesce((array_agg(r.reason order by r.event_count desc) filter (where r.reason is not null))[1:10], '{}')
    into event_count, oldest_event_at, traceparent, reasons
    from by_reason as r;
end $$;
comment on function outbox.claim_keys is 'Lock keys and take every visible event of theirs; keys that are busy elsewhere are left alone.';
