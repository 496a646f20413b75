-- When a pupil's cached rows were last written; a recalculation that finds them true writes none.
--   $1 student
select count(*) as row_count, max(r.calculated_at) as calculated_at,
       extract(epoch from clock_timestamp() - max(r.calculated_at))::double precision as ago_s
from reports.report_student_rollups as r
where r.student_id = $1::uuid
