-- Finish a job that has no keys left, unless somebody paused or cancelled it just now; forget its keys once it has ended.
--   $1 job
with ended as (
    update outbox.job as j
    set state = 'finished', ended_at = clock_timestamp()
    where j.job_id = $1::integer and j.state = 'running'
    returning j.job_id
)
delete from outbox.job_key as k
where k.job_id = $1::integer
  and (exists (select from ended) or exists (
      select from outbox.job as j where j.job_id = $1::integer and j.ended_at is not null
  ))
