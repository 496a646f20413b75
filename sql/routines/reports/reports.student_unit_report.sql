-- A pupil's units in a timeframe: those with an assignment for one of the pupil's groups, or feedback for the pupil.
--   Takes    p_timeframe_id: all, unless told otherwise.
--   Returns  a row per unit, by subject and title. is_fresh as in reports.student_report. A unit that was deleted a moment
--            ago has neither, until its pupils are recalculated.
--   Errors   SC002 unknown pupil.   SC007 unknown timeframe.
create or replace function reports.student_unit_report(
    p_student_id uuid, p_timeframe_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (
    unit_id uuid, subject text, title text, activity_average numeric, assessment_average numeric, average numeric,
    activity_count integer, assessment_count integer, feedback_count integer, assignment_count integer,
    working_level integer, latest_given_at timestamptz, calculated_at timestamptz, is_fresh boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select c.unit_id, u.subject, u.title, c.activity_average, c.assessment_average, c.average,
           c.activity_count, c.assessment_count, c.feedback_count, c.assignment_count,
           c.working_level, c.latest_given_at, c.calculated_at, f.is_fresh
    from (select outbox.is_fresh('reports.student', p_student_id::text) as is_fresh) as f
    join reports.report_student_unit_rollups as c on c.student_id = p_student_id and c.timeframe_id = p_timeframe_id
    left join school.unit as u on u.unit_id = c.unit_id
    order by u.subject, u.title, c.unit_id;
    if found then
        return;
    end if;

    perform reports.check_timeframe(p_timeframe_id);
    if not exists (select from school.student as s where s.student_id = p_student_id) then
        perform school.refuse_unknown('pupil', p_student_id);
    end if;
end $$;
comment on function reports.student_unit_report is 'A pupil''s units in a timeframe, and whether they are fresh.';
