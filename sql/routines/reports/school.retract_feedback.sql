-- Take feedback back, as if it had never been given. Enqueues the pupil.
--   Locks    the feedback.
--   Returns  whether there was any; nothing to retract is no error, so that a repeated call is harmless.
--   Errors   SC012 wrong isolation level.
create or replace function school.retract_feedback(p_assignment_id uuid, p_student_id uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.require_read_committed();
    delete from school.feedback as f where f.assignment_id = p_assignment_id and f.student_id = p_student_id;
    if not found then
        return false;
    end if;
    perform outbox.enqueue('reports.student', p_student_id::text, 'feedback.retracted');
    return true;
end $$;
comment on function school.retract_feedback is 'Take feedback back, as if it had never been given.';
