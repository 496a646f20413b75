-- Is there anything to do? The second look after arming, and the question of a drain. Locks nothing.
--   Takes    p_skip: topics that this daemon leaves alone for the moment.
--   Returns  ready: an event or a due failure of a topic that is not paused.
--            owed_count: keys that still owe a recalculation in some backoff.
--            next_attempt_s: seconds until the next of those falls due; null when there is none.
create or replace function outbox.look(
    p_skip text[] default '{}', out ready boolean, out owed_count bigint, out next_attempt_s double precision
)
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
    with active as (
        select t.topic from outbox.topic as t where t.paused_at is null and t.topic <> all (p_skip)
    ), owed as (
        select count(*) as key_count, min(f.next_attempt_at) as next_attempt_at
        from outbox.failure as f
        join active as a on a.topic = f.topic
        where f.state = 'retrying'
    )
    select coalesce(owed.next_attempt_at <= clock_timestamp(), false)
           or exists (
               select from active as a
               where exists (select from outbox.event as e where e.topic = a.topic)
           ),
           owed.key_count,
           extract(epoch from owed.next_attempt_at - clock_timestamp())::double precision
    from owed
$$;
comment on function outbox.look is 'Is there anything to do, and when will there be?';
