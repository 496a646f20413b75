-- Take a topic out of the registry, and cancel its jobs. The history of its batches stays until its days are over.
--   Locks    outbox.topic, access exclusive, for which it waits a second at most: writers in flight then have committed
--            what they enqueued, and later ones are told that the topic is gone. Else an event could slip in behind us.
--   Takes    p_lose_events: also when events wait or failures are owed; they are deleted with it.
--   Returns  how many events and failures were lost.
--   Errors   RC002 unknown topic.   RC010 events wait, or failures are owed.   55P03 writers are busy: try again.
create or replace function outbox.remove_topic(
    p_topic text, p_lose_events boolean default false, out event_count bigint, out failure_count bigint
)
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '1s'
as $$
begin
    lock table outbox.topic in access exclusive mode;
    if not exists (select from outbox.topic as t where t.topic = p_topic) then
        raise exception 'topic % is not registered', quote_nullable(p_topic)
            using errcode = 'RC002', hint = 'Correct the name: select topic from outbox.topic.';
    end if;
    event_count := (select count(*) from outbox.event as e where e.topic = p_topic);
    failure_count := (select count(*) from outbox.failure as f where f.topic = p_topic);
    if event_count + failure_count > 0 and not p_lose_events then
        raise exception 'topic % has % events waiting and % failed keys', p_topic, event_count, failure_count
            using errcode = 'RC010', hint = 'Let a daemon finish them, or say that they may be lost.';
    end if;
    delete from outbox.event as e where e.topic = p_topic;
    delete from outbox.failure as f where f.topic = p_topic;
    delete from outbox.suspect as s where s.topic = p_topic;
    delete from outbox.drift as d where d.topic = p_topic;
    delete from outbox.audit as a where a.topic = p_topic;
    delete from outbox.drift as d where d.topic = p_topic;
    delete from outbox.audit as a where a.topic = p_topic;
    update outbox.job as j set state = 'cancelled', ended_at = clock_timestamp()
    where j.topic = p_topic and j.ended_at is null;
    delete from outbox.topic as t where t.topic = p_topic;
end $$;
comment on function outbox.remove_topic is 'Take a topic out of the registry; refuses to lose events unless told to.';
