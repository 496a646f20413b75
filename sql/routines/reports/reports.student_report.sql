-- A pupil's report in a timeframe: one row, by primary key.
--   Takes    p_timeframe_id: all, unless told otherwise.
--   Returns  always one row. is_fresh: whether the rest is what a recalculation would produce now, judged in the snapshot
--            that the rest is from; false, too, while the pupil waits for the first calculation (calculated_at is null).
--   Errors   SC002 unknown pupil.   SC007 unknown timeframe.
create or replace function reports.student_report(
    p_student_id uuid, p_timeframe_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (
    student_id uuid, timeframe_id uuid, cohort_id uuid, activity_average numeric, assessment_average numeric,
    average numeric, activity_count integer, assessment_count integer, feedback_count integer, assignment_count integer,
    subjects jsonb, latest_assignment_id uuid, latest_score numeric, latest_comment text, latest_given_at timestamptz,
    calculated_at timestamptz, is_fresh boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select c.student_id, c.timeframe_id, c.cohort_id, c.activity_average, c.assessment_average,
           c.average, c.activity_count, c.assessment_count, c.feedback_count, c.assignment_count,
           c.subjects, c.latest_assignment_id, c.latest_score, c.latest_comment, c.latest_given_at,
           c.calculated_at, outbox.is_fresh('reports.student', p_student_id::text)
    from reports.report_student_rollups as c
    where c.student_id = p_student_id and c.timeframe_id = p_timeframe_id;
    if found then
        return;
    end if;

    perform reports.check_timeframe(p_timeframe_id);
    return query
    select s.student_id, p_timeframe_id, s.cohort_id, null::numeric, null::numeric,
           null::numeric, null::integer, null::integer, null::integer, null::integer,
           null::jsonb, null::uuid, null::numeric, null::text, null::timestamptz,
           null::timestamptz, false
    from school.student as s
    where s.student_id = p_student_id;
    if not found then
        perform school.refuse_unknown('pupil', p_student_id);
    end if;
end $$;
comment on function reports.student_report is 'A pupil''s report in a timeframe, and whether it is fresh.';
