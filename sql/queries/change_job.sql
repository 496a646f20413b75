-- Pause, resume or cancel a job; no row when it has ended.
--   $1 job, $2 state
with was as (
    select j.job_id, j.state from outbox.job as j where j.job_id = $1::integer and j.ended_at is null for update
)
update outbox.job as j
set state = $2::text, ended_at = case when $2::text = 'cancelled' then clock_timestamp() end
from was
where j.job_id = was.job_id
returning was.state as old_state
