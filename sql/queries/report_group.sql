-- A group's report.
--   $1 group, $2 timeframe
select r.student_id, r.unit_id, r.subject, r.title, r.activity_average, r.assessment_average, r.average, r.feedback_count,
       r.assignment_count, r.working_level, r.latest_given_at, r.pupil_average, r.calculated_at, r.is_fresh
from reports.group_report($1::uuid, $2::uuid) as r
