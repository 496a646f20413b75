-- Let a pupil join a group: what is set for the group is set for the pupil. Enqueues the pupil.
--   Locks    the pupil, for key share; then the group, for share: it waits for whoever changes what is set for it.
--   Returns  whether anything changed; joining again does nothing.
--   Errors   SC002 unknown pupil.   SC005 unknown group.   SC012 wrong isolation level.
create or replace function school.join_group(p_student_id uuid, p_group_id uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.lock_pupil(p_student_id);
    perform school.lock_group(p_group_id);
    insert into school.group_membership (student_id, group_id)
    values (p_student_id, p_group_id)
    on conflict (student_id, group_id) do nothing;
    if not found then
        return false;
    end if;
    perform outbox.enqueue('reports.student', p_student_id::text, 'group.joined');
    return true;
end $$;
comment on function school.join_group is 'Let a pupil join a group.';
