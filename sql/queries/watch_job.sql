-- May a job go on? Asked between two chunks.
--   $1 job, $2 seconds that a live event may wait
select j.state, outbox.is_behind(j.topic, $2::double precision) as is_behind
from outbox.job as j
where j.job_id = $1::integer
