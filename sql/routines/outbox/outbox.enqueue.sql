-- Say that keys changed, in the transaction that changes them. The event commits with the change, or neither does.
--   Locks    what outbox.ring locks; never waits for another writer.
--   Needs    any isolation level.
--   Takes    p_key, or p_keys (an empty array is no change at all): 1 to 255 characters each.
--            p_reason: why, for operators, at most 200 characters; no personal data.
--   Errors   RC002 unknown topic.   RC003 a key is null, empty or too long.   All fail the writer's transaction: a
--            change whose event is lost would leave a report wrong for ever.
create or replace function outbox.enqueue(p_topic text, p_key text, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if p_key is null or length(p_key) not between 1 and 255 then
        raise exception 'a key of topic % is null, empty or longer than 255 characters', p_topic
            using errcode = 'RC003', hint = 'Pass the id of what changed, as text.';
    end if;
    if not exists (select from outbox.topic as t where t.topic = p_topic) then
        raise exception 'topic % is not registered, so nobody would ever recalculate its keys', quote_nullable(p_topic)
            using errcode = 'RC002', hint = 'Register it with outbox.set_topic, or correct the name.';
    end if;
    insert into outbox.event (topic, key, reason, traceparent)
    values (p_topic, p_key, p_reason, outbox.traceparent());
    perform outbox.ring(p_topic);
end $$;
comment on function outbox.enqueue(text, text, text) is 'Say that a key changed, in the transaction that changes it.';

create or replace function outbox.enqueue(p_topic text, p_keys text[], p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if p_keys is null or exists (
        select from unnest(p_keys) as k (key)
        where k.key is null or length(k.key) not between 1 and 255
    ) then
        raise exception 'a key of topic % is null, empty or longer than 255 characters', p_topic
            using errcode = 'RC003', hint = 'Pass the ids of what changed, as an array of text.';
    end if;
    if not exists (select from outbox.topic as t where t.topic = p_topic) then
        raise exception 'topic % is not registered, so nobody would ever recalculate its keys', quote_nullable(p_topic)
            using errcode = 'RC002', hint = 'Register it with outbox.set_topic, or correct the name.';
    end if;
    insert into outbox.event (topic, key, reason, traceparent)
    select p_topic, k.key, p_reason, outbox.traceparent()
    from unnest(p_keys) as k (key);
    if found then
        perform outbox.ring(p_topic);
    end if;
end $$;
comment on function outbox.enqueue(text, text[], text) is 'Say that keys changed, in the transaction that changes them.';
