-- Whether this transaction holds the lock of a key.
--   $1 topic, $2 key
select exists (
    select from pg_locks as l
    where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.granted and l.objsubid = 1
      and (l.classid::bigint << 32) | l.objid::bigint = outbox.key_lock_id($1::text, $2::text)
)
