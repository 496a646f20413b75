-- A group's grid, pupils by units, from the cached tables alone: it never touches feedback.
--   Takes    p_timeframe_id: all, unless told otherwise.
--   Returns  a row for every pupil of the group and every unit that is set for it in the timeframe, by pupil, subject and
--            title; cells without a cached row are null. A pupil has one row with a null unit when nothing is set.
--            pupil_average: of all the pupil's work, not of this group's alone. is_fresh as in reports.student_report.
--   Errors   SC005 unknown group.   SC007 unknown timeframe.
create or replace function reports.group_report(
    p_group_id uuid, p_timeframe_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (
    student_id uuid, student_name text, unit_id uuid, subject text, title text, activity_average numeric,
    assessment_average numeric, average numeric, feedback_count integer, assignment_count integer, working_level integer,
    latest_given_at timestamptz, pupil_average numeric, calculated_at timestamptz, is_fresh boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    perform reports.check_timeframe(p_timeframe_id);
    if not exists (select from school.class_group as g where g.group_id = p_group_id) then
        perform school.refuse_unknown('group', p_group_id);
    end if;
    return query
    with pupil as materialized (
        select s.student_id, s.name, r.average, r.calculated_at,
               r.calculated_at is not null and outbox.is_fresh('reports.student', s.student_id::text) as is_fresh
        from school.group_membership as m
        join school.student as s on s.student_id = m.student_id
        left join reports.report_student_rollups as r on r.student_id = m.student_id and r.timeframe_id = p_timeframe_id
        where m.group_id = p_group_id
    ), unit as materialized (
        select u.unit_id, u.subject, u.title
        from school.unit as u
        where u.unit_id in (
            select a.unit_id
            from school.assignment as a
            join school.timeframe as t on a.assigned_on between t.starts_on and t.ends_on
            where a.group_id = p_group_id and t.timeframe_id = p_timeframe_id
        )
    )
    select p.student_id, p.name, u.unit_id, u.subject, u.title, c.activity_average,
           c.assessment_average, c.average, c.feedback_count, c.assignment_count, c.working_level,
           c.latest_given_at, p.average, p.calculated_at, p.is_fresh
    from pupil as p
    left join unit as u on true
    left join reports.report_student_unit_rollups as c
        on c.student_id = p.student_id and c.timeframe_id = p_timeframe_id and c.unit_id = u.unit_id
    order by p.name, p.student_id, u.subject, u.title, u.unit_id;
end $$;
comment on function reports.group_report is 'A group''s grid of pupils by units, from the cached tables alone.';
