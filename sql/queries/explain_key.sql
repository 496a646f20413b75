-- What is to be said of a key at this moment, in one snapshot.
--   $1 topic, $2 key
-- is_registered, paused_at, paused_reason: of the topic. busy_with: the backend that holds the key's lock:
-- somebody recalculates it now. crash_count: batches that vanished with it.
select t.topic is not null as is_registered, t.paused_at, t.paused_reason,
       outbox.is_fresh($1::text, $2::text) as is_fresh,
       (select count(*) from outbox.event as e where e.topic = $1::text and e.key = $2::text) as event_count,
       coalesce((select s.crash_count from outbox.suspect as s where s.topic = $1::text and s.key = $2::text), 0)
           as crash_count,
       array(
           select l.pid
           from pg_locks as l
           where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
             and l.database = (select d.oid from pg_database as d where d.datname = current_database())
             and (l.classid::bigint << 32) | l.objid::bigint = outbox.key_lock_id($1::text, $2::text)
           order by l.pid
       ) as busy_with
from (select) as one
left join outbox.topic as t on t.topic = $1::text
