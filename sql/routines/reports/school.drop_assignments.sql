-- Delete assignments with all feedback on them. For the functions that hold their groups; it enqueues nothing.
--   Locks    the school.assignment rows, for update, so that feedback in flight ends first; then the feedback. In the order
--            of all locks.
create or replace function school.drop_assignments(p_assignment_ids uuid[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform from school.assignment as a
    where a.assignment_id = any (p_assignment_ids)
    order by a.assignment_id
    for update;
    perform from school.feedback as f
    where f.assignment_id = any (p_assignment_ids)
    order by f.student_id, f.assignment_id
    for update;
    delete from school.feedback as f where f.assignment_id = any (p_assignment_ids);
    delete from school.assignment as a where a.assignment_id = any (p_assignment_ids);
end $$;
comment on function school.drop_assignments is 'Delete assignments with all feedback on them; enqueues nothing.';
