-- Do events of a topic wait that a daemon should have taken by now? An operation that can wait then lets them go first.
--   Takes    p_seconds: how long an event may wait before it counts.
--   Returns  false also when nobody is there to take them: no daemon, or the topic is paused.
create or replace function outbox.is_behind(p_topic text, p_seconds double precision) returns boolean
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
    select outbox.is_served(p_topic) and coalesce(clock_timestamp() - make_interval(secs => p_seconds) > (
        select e.enqueued_at from outbox.event as e where e.topic = p_topic order by e.event_id limit 1
    ), false)
$$;
comment on function outbox.is_behind is 'Do events of a topic wait that a daemon should have taken by now?';
