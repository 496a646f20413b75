-- A pupil's report.
--   $1 pupil, $2 timeframe
select r.student_id, r.timeframe_id, r.cohort_id, r.activity_average, r.assessment_average, r.average, r.activity_count,
       r.assessment_count, r.feedback_count, r.assignment_count, r.subjects, r.latest_score, r.latest_given_at,
       r.calculated_at, r.is_fresh
from reports.student_report($1::uuid, $2::uuid) as r
