-- Has the daemon's process come up and begun to listen? It says so at its next heartbeat; before, that it is armed does.
--   $1 pid
select exists (
           select from outbox.daemon as d
           where d.pid = $1::integer and d.ended_at is null
             and (d.state in ('working', 'idle') or exists (
                 select from pg_locks as l
                 where l.locktype = 'advisory' and l.classid = 29283 and l.objid = 1 and l.mode = 'ExclusiveLock' and l.granted
             ))
       ) as listens
