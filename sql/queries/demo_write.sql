-- Write as the application does, and say by which transaction.
--   $1 assignment, $2 pupil, $3 score
select school.record_feedback($1::uuid, $2::uuid, $3::numeric) as changed, pg_current_xact_id()::text as xid
