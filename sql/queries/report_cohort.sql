-- A cohort's report.
--   $1 cohort, $2 timeframe
select r.student_id, r.activity_average, r.assessment_average, r.average, r.activity_count, r.assessment_count,
       r.feedback_count, r.assignment_count, r.latest_given_at, r.calculated_at, r.is_fresh
from reports.cohort_report($1::uuid, $2::uuid) as r
