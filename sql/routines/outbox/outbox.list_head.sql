-- What is at the head of a topic's queue that no other session is about to take?
--   Locks    the event rows, skip locked.
--   Takes    p_above: look only at later events. p_limit: most events. p_busy: keys whose events to pass by.
--   Returns  keys: distinct. first_event_ids: of each key. last_event_id: of all. is_full: there may be more behind it.
create or replace function outbox.list_head(
    p_topic text, p_above bigint, p_limit integer, p_busy text[],
    out keys text[], out first_event_ids bigint[], out last_event_id bigint, out is_full boolean
)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    with head as (
        select e.key, e.event_id from outbox.event as e
        where e.topic = p_topic and e.event_id > p_above and e.key <> all (p_busy)
        order by e.event_id
        limit p_limit
        for update skip locked
    ), by_key as (
        select h.key, min(h.event_id) as first, max(h.event_id) as last, count(*) as event_count
        from head as h
        group by h.key
    )
    select coalesce(array_agg(k.key), '{}'), array_agg(k.first), max(k.last), sum(k.event_count) = p_limit
    into keys, first_event_ids, last_event_id, is_full
    from by_key as k;
end $$;
comment on function outbox.list_head is 'Lock and list what is at the head of a topic''s queue.';
