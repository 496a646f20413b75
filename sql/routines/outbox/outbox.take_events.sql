-- Take every visible event of many keys at once: by one pass over them, where locking first would take another.
--   Locks    the event rows. Another daemon has one locked no longer than outbox.claim looks at the head, and it waits for
--            nobody; so whoever holds up this one for longer is somebody else.
--   Needs    the keys' locks, as outbox.claim_keys has them; read committed, and a statement of its own.
--   Returns  as outbox.claim_keys.
--   Errors   55P03, or 40P01 where deadlock_timeout is shorter: somebody keeps one of the rows locked for more than 20 ms. Take
--            those that are free.
create or replace function outbox.take_events(
    p_topic text, p_keys text[], p_above bigint,
    out event_count bigint, out oldest_event_at timestamptz, out reasons text[], out traceparent text
)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
    set lock_timeout = '20ms'
as $$
begin
    with taken as (
        delete from outbox.event as e
        where e.topic = p_topic and e.key = any (p_keys) and e.event_id > p_above
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
comment on function outbox.take_events is 'Take every visible event of many keys, without locking them first.';
