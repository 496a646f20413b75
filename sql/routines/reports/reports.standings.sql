-- How pupils stand, computed from the source. The rule of the working level lives here, and only here:
--     in a unit     the highest level at which more than half of the unit's assignments of that level, set for the
--                   pupil's groups, carry a positive score;
--     in a subject  the most frequent of its units' levels, the higher on a tie.
-- One function for both, taking many pupils: the decision needs the counts of all levels and units, and a function
-- called for each of them would cost more than the counting.
--   Locks    nothing.
--   Takes    p_student_ids: pupils. One without assignments and feedback has no rows.
--   Returns  a row per pupil, timeframe and unit; one per pupil, timeframe and subject, whose unit_id is null; and one per
--            pupil and timeframe, whose subject is null too. Sums, since a mean of means would be wrong.
-- Plain SQL without settings of its own, so that the planner unfolds it into the caller's statement.
create or replace function reports.standings(p_student_ids uuid[]) returns table (
    student_id uuid, timeframe_id uuid, subject text, unit_id uuid, unit_count integer, assignment_count integer,
    feedback_count integer, feedback_points integer, assessment_count integer, assessment_points integer,
    working_level integer, latest_given_at timestamptz
)
language sql stable
as $$
    with by_unit as (
        select c.student_id, c.timeframe_id, c.unit_id, sum(c.assignment_count)::integer as assignment_count,
               sum(c.feedback_count)::integer as feedback_count, sum(c.feedback_points)::integer as feedback_points,
               sum(c.assessment_count)::integer as assessment_count, sum(c.assessment_points)::integer as assessment_points,
               max(c.level) filter (where c.positive_count * 2 > c.assignment_count) as working_level,
               max(c.latest_given_at) as latest_given_at
        from reports.level_counts(p_student_ids) as c
        group by c.student_id, c.timeframe_id, c.unit_id
    ), by_subject_and_level as (
        select b.student_id, b.timeframe_id, u.subject, b.working_level,
               count(*)::integer as unit_count, sum(b.assignment_count)::integer as assignment_count,
               sum(b.feedback_count)::integer as feedback_count, sum(b.feedback_points)::integer as feedback_points,
               sum(b.assessment_count)::integer as assessment_count, sum(b.assessment_points)::integer as assessment_points,
               max(b.latest_given_at) as latest_given_at
        from by_unit as b
        join school.unit as u on u.unit_id = b.unit_id
        group by b.student_id, b.timeframe_id, u.subject, b.working_level
    )
    select b.student_id, b.timeframe_id, null, b.unit_id, 1, b.assignment_count,
           b.feedback_count, b.feedback_points, b.assessment_count, b.assessment_points, b.working_level, b.latest_given_at
    from by_unit as b
    union all
    select s.student_id, s.timeframe_id, s.subject, null, sum(s.unit_count)::integer, sum(s.assignment_count)::integer,
           sum(s.feedback_count)::integer, sum(s.feedback_points)::integer,
           sum(s.assessment_count)::integer, sum(s.assessment_points)::integer,
           case when grouping(s.subject) = 0 then
               (array_agg(s.working_level order by s.unit_count desc, s.working_level desc)
                   filter (where s.working_level is not null))[1]
           end,
           max(s.latest_given_at)
    from by_subject_and_level as s
    group by grouping sets ((s.student_id, s.timeframe_id, s.subject), (s.student_id, s.timeframe_id))
$$;
comment on function reports.standings is 'How pupils stand in units, subjects and altogether: counts, points, and the rule of the working level.';
