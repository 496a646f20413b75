-- Delete an assignment with all feedback on it. Enqueues its group's members and whoever had feedback on it.
--   Locks    as school.lock_assignment; then the feedback.
--   Errors   SC003 unknown assignment.   SC012 wrong isolation level.   40001 somebody moved it at the same time: try again.
create or replace function school.delete_assignment(p_assignment_id uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_keys text[];
begin
    perform school.lock_assignment(p_assignment_id);
    v_keys := school.pupils_of_assignments(array[p_assignment_id]);
    perform school.drop_assignments(array[p_assignment_id]);
    perform outbox.enqueue('reports.student', v_keys, 'assignment.deleted');
end $$;
comment on function school.delete_assignment is 'Delete an assignment with all feedback on it.';
