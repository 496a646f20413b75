-- Let a paused topic go on, and wake a daemon for what waited.
--   Locks    the topic's row, and what outbox.ring locks.
--   Returns  whether it was paused.
--   Errors   RC002 unknown topic.
create or replace function outbox.resume_topic(p_topic text) returns boolean
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
    update outbox.topic as t set paused_at = null, paused_reason = null where t.topic = p_topic;
    perform outbox.ring(p_topic);
    return v_paused_at is not null;
end $$;
comment on function outbox.resume_topic is 'Let a paused topic go on.';
