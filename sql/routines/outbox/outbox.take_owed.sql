-- Take what waits for keys, since they are about to be recalculated: every visible event, to be deleted here.
--   Locks    the event rows. The caller holds the keys' locks, without which nobody takes events of theirs.
--   Returns  event_count: events taken. note_count: what is held against the keys, and outbox.settle clears.
--   Errors   RC002 unknown topic.
create or replace function outbox.take_owed(p_topic text, p_keys text[], out event_count bigint, out note_count bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from outbox.topic as t where t.topic = p_topic) then
        raise exception 'topic % is not registered', quote_nullable(p_topic)
            using errcode = 'RC002', hint = 'Correct the name: select topic from outbox.topic.';
    end if;
    with taken as (
        delete from outbox.event as e where e.topic = p_topic and e.key = any (p_keys)
        returning e.event_id
    )
    select count(*) into event_count from taken;
    note_count := (select count(*) from outbox.failure as f where f.topic = p_topic and f.key = any (p_keys))
                + (select count(*) from outbox.suspect as s where s.topic = p_topic and s.key = any (p_keys))
                + (select count(*) from outbox.drift as d where d.topic = p_topic and d.key = any (p_keys));
end $$;
comment on function outbox.take_owed is 'Take the events of keys that are about to be recalculated, and count what is held against them.';
