-- Count what is set for pupils and what they have feedback on, per timeframe, unit and level.
-- A timeframe holds the assignments dated within it. Feedback on work of a group that the pupil has left still counts,
-- but that work is no longer set for the pupil's groups.
--   Locks    nothing.
--   Takes    p_student_ids: pupils. One without assignments and feedback has no rows.
--   Returns  assignment_count: set for the pupil's groups. positive_count: of those, with a score above 0.
--            feedback_*: on activities and assessments alike. *_points: sums of scores, ten thousand for the score 1: as
--            exact as sums of numerics, at a fraction of the cost.
-- Plain SQL without settings of its own, so that the planner unfolds it into the caller's statement.
create or replace function reports.level_counts(p_student_ids uuid[]) returns table (
    student_id uuid, timeframe_id uuid, unit_id uuid, level integer, assignment_count integer, positive_count integer,
    feedback_count integer, feedback_points integer, assessment_count integer, assessment_points integer,
    latest_given_at timestamptz
)
language sql stable
as $$
    select w.student_id, t.timeframe_id, w.unit_id, w.level,
           count(*) filter (where w.is_set)::integer,
           count(*) filter (where w.is_set and w.points > 0)::integer,
           count(w.points)::integer, coalesce(sum(w.points), 0)::integer,
           count(w.assessment_points)::integer, coalesce(sum(w.assessment_points), 0)::integer,
           max(w.given_at)
    from (
        select coalesce(s.student_id, f.student_id) as student_id, s.student_id is not null as is_set, f.given_at,
               coalesce(s.unit_id, a.unit_id) as unit_id, coalesce(s.level, a.level) as level,
               coalesce(s.assigned_on, a.assigned_on) as assigned_on, f.points,
               case when coalesce(s.kind, a.kind) = 'assessment' then f.points end as assessment_points
        from (
            select m.student_id, a.assignment_id, a.unit_id, a.level, a.kind, a.assigned_on
            from school.group_membership as m
            join school.assignment as a on a.group_id = m.group_id
            where m.student_id = any (p_student_ids)
        ) as s
        full join (
            select f.student_id, f.assignment_id, (f.score * 10000)::integer as points, f.given_at
            from school.feedback as f
            where f.student_id = any (p_student_ids)
        ) as f on f.student_id = s.student_id and f.assignment_id = s.assignment_id
        left join lateral (
            -- What is set was found with all that is wanted of it; for the rest, hardly ever a row, the index is asked.
            select a.unit_id, a.level, a.kind, a.assigned_on
            from school.assignment as a
            where a.assignment_id = case when s.student_id is null then f.assignment_id end
            offset 0
        ) as a on true
        offset 0  -- or every sum and count would work its points out again
    ) as w
    join school.timeframe as t on w.assigned_on between t.starts_on and t.ends_on
    group by w.student_id, t.timeframe_id, w.unit_id, w.level
$$;
comment on function reports.level_counts is 'Count what is set for pupils and what they have feedback on, per timeframe, unit and level.';
