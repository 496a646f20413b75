-- Lock an assignment, and the units and groups of its present and its future, in the order of all locks.
--   Locks    as school.lock_units_and_groups; then the school.assignment row, for update: it waits for feedback in flight.
--   Takes    p_unit_id, p_group_id: where it will belong; null where it stays.
--   Returns  the row as it is.
--   Errors   SC003 unknown assignment.   SC006 unknown unit.   SC005 unknown group.   SC012 wrong isolation level.
--            40001 it moved while we waited for the locks of where it was: try again.
create or replace function school.lock_assignment(
    p_assignment_id uuid, p_unit_id uuid default null, p_group_id uuid default null,
    out group_id uuid, out unit_id uuid, out level integer, out kind text, out assigned_on date
)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_seen record;
begin
    select a.group_id, a.unit_id into v_seen from school.assignment as a where a.assignment_id = p_assignment_id;
    if not found then
        perform school.refuse_unknown('assignment', p_assignment_id);
    end if;
    begin
        perform school.lock_units_and_groups(array[v_seen.unit_id, p_unit_id], array[v_seen.group_id, p_group_id]);
    exception when sqlstate 'SC005' or sqlstate 'SC006' then
        if exists (select from school.assignment as a where a.assignment_id = p_assignment_id) then
            raise;
        end if;
        perform school.refuse_unknown('assignment', p_assignment_id); -- deleted with its unit or group while we waited
    end;
    select a.group_id, a.unit_id, a.level, a.kind, a.assigned_on into group_id, unit_id, level, kind, assigned_on
    from school.assignment as a
    where a.assignment_id = p_assignment_id
    for update;
    if not found then
        perform school.refuse_unknown('assignment', p_assignment_id);
    end if;
    if (group_id, unit_id) is distinct from (v_seen.group_id, v_seen.unit_id) then
        raise exception 'assignment % was moved to another group or unit meanwhile', p_assignment_id
            using errcode = '40001', hint = 'Try again.';
    end if;
end $$;
comment on function school.lock_assignment is 'Lock an assignment with its units and groups, in the order of all locks.';
