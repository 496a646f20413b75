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
    select w.student_id, t.timeframe_id, a.unit_id, a.level,
           count(*) filter (where w.is_set)::integer,
           count(*) filter (where w.is_set and w.points > 0)::integer,
           count(w.points)::integer, coalesce(sum(w.points), 0)::integer,
           count(w.points) filter (where a.kind = 'assessment')::integer,
           coalesce(sum(w.points) filter (where a.kind = 'assessment'), 0)::integer,
           max(w.given_at)
    from (
        select coalesce(s.student_id, f.student_id) as student_id, coalesce(s.assignment_id, f.assignment_id) as assignment_id,
               s.student_id is not null as is_set, f.points, f.given_at
        from (
            select m.student_id, a.assignment_id
            from school.group_membership as m
            join school.assignment as a on a.group_id = m.group_id
            where m.student_id = any (p_student_ids)
        ) as s
        full join (
            -- Here, and not above the join, or every sum and count would work it out again.
            select f.student_id, f.assignment_id, (f.score * 10000)::integer as points, f.given_at
            from school.feedback as f
            where f.student_id = any (p_student_ids)
        ) as f on f.student_id = s.student_id and f.assignment_id = s.assignment_id
    ) as w
    join school.assignment as a on a.assignment_id = w.assignment_id
    join school.timeframe as t on a.assigned_on between t.starts_on and t.ends_on
    group by w.student_id, t.timeframe_id, a.unit_id, a.level
$$;
comment on function reports.level_counts is 'Count what is set for pupils and what they have feedback on, per timeframe, unit and level.';
