-- Remove a pupil with all feedback and memberships. Enqueues the pupil, whose cached rows go with the recalculation.
--   Locks    the pupil, for update: it waits for feedback in flight; then the pupil's feedback, in the order of all locks.
--   Errors   SC002 unknown pupil.   SC012 wrong isolation level.
create or replace function school.remove_student(p_student_id uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.lock_pupil(p_student_id, true);
    perform from school.feedback as f where f.student_id = p_student_id order by f.assignment_id for update;
    delete from school.feedback as f where f.student_id = p_student_id;
    delete from school.group_membership as m where m.student_id = p_student_id;
    delete from school.student as s where s.student_id = p_student_id;
    perform outbox.enqueue('reports.student', p_student_id::text, 'student.removed');
end $$;
comment on function school.remove_student is 'Remove a pupil with all feedback and memberships.';
