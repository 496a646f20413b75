-- Say that this daemon lives; find out whether another one vanished, or the last run of this one did: its row has no
-- end, but nobody holds its lock (see sign_in.sql).
--   $1 daemon, $2 host, $3 pid, $4 version, $5 state
-- Returns is_cautious: somebody vanished within a minute, or keys are suspected of it. Not those whose lock is held: a
--         cautious daemon notes whom it has in hand, and would be cautious for that as long as there is work. Nor what a
--         clock that was ahead left behind. Nor what was noted just now, which may be gone by the time that locks are read.
with vanished as (
    update outbox.daemon as d
    set state = 'vanished', ended_at = clock_timestamp()
    where d.ended_at is null
      and d.daemon_id <> $1::uuid
      and not exists (
          select from pg_locks as l
          where l.locktype = 'advisory' and l.classid = 29284 and l.objsubid = 2
            and l.objid = (hashtext(d.daemon_id::text)::bigint & 4294967295)::oid
            and l.database = (select b.oid from pg_database as b where b.datname = current_database())
      )
    returning d.daemon_id
), forgotten as (
    delete from outbox.daemon as d
    where d.ended_at < clock_timestamp() - interval '7 days'
), alive as (
    insert into outbox.daemon as d (daemon_id, host, pid, version, state, backend_pid, backend_started_at)
    select $1::uuid, $2::text, $3::integer, $4::text, $5::text, a.pid, coalesce(a.backend_start, clock_timestamp())
    from pg_stat_activity as a
    where a.pid = pg_backend_pid()
    on conflict (daemon_id) do update set
        state = excluded.state, seen_at = clock_timestamp(), ended_at = null,
        backend_pid = excluded.backend_pid, backend_started_at = excluded.backend_started_at
    returning d.daemon_id
)
select exists (select from vanished)
       or exists (
           select from outbox.daemon as d
           where d.state = 'vanished'
             and d.ended_at between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '1 minute'
       )
       or exists (
           select from outbox.suspect as s
           where s.last_crashed_at between clock_timestamp() - interval '1 minute' and clock_timestamp() - interval '1 second'
             and not exists (
                 select from pg_locks as l
                 where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
                   and l.classid::bigint << 32 | l.objid::bigint = outbox.key_lock_id(s.topic, s.key)
                   and l.database = (select b.oid from pg_database as b where b.datname = current_database())
             )
       ) as is_cautious
from alive
