-- Let a pupil leave a group. Feedback stays the pupil's own; the group's work no longer counts for the working level.
-- Enqueues the pupil.
--   Locks    the pupil, for update: it waits for feedback in flight. Then the group, for share: it waits for whoever changes
--            what is set for it.
--   Returns  whether anything changed; leaving a group one is not in does nothing.
--   Errors   SC002 unknown pupil.   SC005 unknown group.   SC012 wrong isolation level.
create or replace function school.leave_group(p_student_id uuid, p_group_id uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.lock_pupil(p_student_id, true);
    perform school.lock_group(p_group_id);
    delete from school.group_membership as m where m.student_id = p_student_id and m.group_id = p_group_id;
    if not found then
        return false;
    end if;
    perform outbox.enqueue('reports.student', p_student_id::text, 'group.left');
    return true;
end $$;
comment on function school.leave_group is 'Let a pupil leave a group.';
