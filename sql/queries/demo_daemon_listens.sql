-- Has the daemon's process come up and begun to listen? That it is armed says so; one that was told to poll never is.
--   $1 pid
select exists (
           select from outbox.daemon as d
           where d.pid = $1::integer and d.ended_at is null
             and (d.started_at < clock_timestamp() - interval '3 seconds' or exists (
                 select from pg_locks as l
                 where l.locktype = 'advisory' and l.classid = 29283 and l.objid = 1 and l.mode = 'ExclusiveLock' and l.granted
             ))
       ) as listens
