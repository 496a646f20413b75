-- The pupils whom assignments affect: the members of their groups, and whoever has feedback on them.
-- Feedback in flight needs no mention: its pupil is a member until it commits, since school.leave_group waits for it.
--   Locks    nothing; the caller holds the groups.
--   Returns  keys of the topic reports.student, distinct.
create or replace function school.pupils_of_assignments(p_assignment_ids uuid[]) returns text[]
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    select array(
        select m.student_id::text
        from school.group_membership as m
        where m.group_id in (select a.group_id from school.assignment as a where a.assignment_id = any (p_assignment_ids))
        union
        select f.student_id::text from school.feedback as f where f.assignment_id = any (p_assignment_ids)
    )
$$;
comment on function school.pupils_of_assignments is 'The pupils whom assignments affect, as keys of the topic reports.student.';
