-- Pause a topic: no claim begins that sees it. Events wait, nothing is lost; batches that have begun are finished.
--   Locks    the topic's row.
--   Takes    p_reason: why, for the next operator; null is none.
--   Returns  whether it was running; a topic that was paused stays so since then, with the new reason, if one is given.
--   Errors   RC002 unknown topic.
create or replace function outbox.pause_topic(p_topic text, p_reason text default null) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_paused_at timestamptz;
begin
    select t.paused_at into v_paused_at from outbox.topic as t where t.topic = p_topic for update;
    if not found then
        raise exception 'topic % is not registered', quote_nullable(p_topic)
            using errcode = 'RC002', hint = 'Correct the name: select topic from outbox.topic.';
    end if;
    update outbox.topic as t
    set paused_at = coalesce(t.paused_at, clock_timestamp()), paused_reason = coalesce(p_reason, t.paused_reason)
    where t.topic = p_topic;
    return v_paused_at is null;
end $$;
comment on function outbox.pause_topic is 'Pause a topic: events wait until outbox.resume_topic.';
