-- Set an assignment for a group. Enqueues the group's members.
--   Locks    as school.lock_units_and_groups: nobody joins or leaves the group meanwhile, so no member is missed.
--   Returns  the assignment's id.
--   Errors   SC005 unknown group.   SC006 unknown unit.   SC009 level, kind or day is no good.   SC012 wrong isolation level.
create or replace function school.set_assignment(
    p_group_id uuid, p_unit_id uuid, p_level integer, p_kind text, p_assigned_on date default current_date
) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_assignment_id uuid;
begin
    perform school.check_assignment(p_level, p_kind, p_assigned_on);
    if p_group_id is null then
        perform school.refuse_unknown('group', null);
    elsif p_unit_id is null then
        perform school.refuse_unknown('unit', null);
    end if;
    perform school.lock_units_and_groups(array[p_unit_id], array[p_group_id]);
    insert into school.assignment (group_id, unit_id, level, kind, assigned_on)
    values (p_group_id, p_unit_id, p_level, p_kind, p_assigned_on)
    returning assignment_id into v_assignment_id;
    perform outbox.enqueue('reports.student', school.pupils_of_assignments(array[v_assignment_id]), 'assignment.set');
    return v_assignment_id;
end $$;
comment on function school.set_assignment is 'Set an assignment for a group.';
