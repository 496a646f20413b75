-- One job, or all that have not ended and the latest of those that have.
--   $1 job or null, $2 most that have ended
with ended as (
    select j.job_id from outbox.job as j where j.ended_at is not null order by j.job_id desc limit $2::integer
)
select j.job_id, j.kind, j.topic, j.part, j.is_named, j.state, j.cursor, j.key_count, j.done_count, j.changed_count,
       j.skipped_count, j.failed_count, j.chunk_keys, j.rate_limit, j.keys_per_s, j.error, j.created_at, j.advanced_at,
       j.ended_at,
       exists (
           select from pg_locks as l
           where l.locktype = 'advisory' and l.classid = 29284 and l.objid = j.job_id::oid and l.objsubid = 2
             and l.granted and l.database = (select d.oid from pg_database as d where d.datname = current_database())
       ) as is_held
from outbox.job as j
where case when $1::integer is null then j.ended_at is null or j.job_id in (select e.job_id from ended as e)
      else j.job_id = $1::integer end
order by j.job_id
