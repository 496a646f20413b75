-- Every pupil of a cohort in a timeframe, from the cached tables alone.
--   Takes    p_timeframe_id: all, unless told otherwise.
--   Returns  a row per pupil whose cached row says this cohort, by name. is_fresh as in reports.student_report; a pupil who
--            was added or moved a moment ago appears with the recalculation.
--   Errors   SC008 unknown cohort.   SC007 unknown timeframe.
create or replace function reports.cohort_report(
    p_cohort_id uuid, p_timeframe_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (
    student_id uuid, student_name text, activity_average numeric, assessment_average numeric, average numeric,
    activity_count integer, assessment_count integer, feedback_count integer, assignment_count integer, subjects jsonb,
    latest_given_at timestamptz, calculated_at timestamptz, is_fresh boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    perform reports.check_timeframe(p_timeframe_id);
    if not exists (select from school.cohort as h where h.cohort_id = p_cohort_id) then
        perform school.refuse_unknown('cohort', p_cohort_id);
    end if;
    return query
    select c.student_id, s.name, c.activity_average, c.assessment_average, c.average,
           c.activity_count, c.assessment_count, c.feedback_count, c.assignment_count, c.subjects,
           c.latest_given_at, c.calculated_at, outbox.is_fresh('reports.student', c.student_id::text)
    from reports.report_student_rollups as c
    left join school.student as s on s.student_id = c.student_id
    where c.cohort_id = p_cohort_id and c.timeframe_id = p_timeframe_id
    order by s.name, c.student_id;
end $$;
comment on function reports.cohort_report is 'Every pupil of a cohort in a timeframe, from the cached tables alone.';
