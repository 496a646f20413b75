-- Does anybody wait to commit because somebody else does? Whoever notifies holds this lock meanwhile, in all of the cluster.
select exists (
    select from pg_locks as l
    where l.locktype = 'object' and l.classid = 'pg_database'::regclass and l.objid = 0 and l.objsubid = 0 and not l.granted
) as is_queued
