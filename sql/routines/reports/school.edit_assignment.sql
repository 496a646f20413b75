-- Change an assignment; null leaves a value as it is. Enqueues the members of its group, of the group it had before, and
-- whoever has feedback on it.
--   Locks    as school.lock_assignment.
--   Returns  whether anything changed.
--   Errors   SC003 unknown assignment.   SC005 unknown group.   SC006 unknown unit.   SC009 level, kind or day is no good.
--            SC012 wrong isolation level.   40001 somebody moved it at the same time: try again.
create or replace function school.edit_assignment(
    p_assignment_id uuid, p_group_id uuid default null, p_unit_id uuid default null, p_level integer default null,
    p_kind text default null, p_assigned_on date default null
) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_old record;
    v_keys text[];
begin
    select l.group_id, l.unit_id, l.level, l.kind, l.assigned_on into v_old
    from school.lock_assignment(p_assignment_id, p_unit_id, p_group_id) as l;
    perform school.check_assignment(
        coalesce(p_level, v_old.level), coalesce(p_kind, v_old.kind), coalesce(p_assigned_on, v_old.assigned_on)
    );
    v_keys := school.pupils_of_assignments(array[p_assignment_id]);
    update school.assignment as a
    set group_id = coalesce(p_group_id, a.group_id), unit_id = coalesce(p_unit_id, a.unit_id),
        level = coalesce(p_level, a.level), kind = coalesce(p_kind, a.kind),
        assigned_on = coalesce(p_assigned_on, a.assigned_on)
    where a.assignment_id = p_assignment_id
      and (a.group_id, a.unit_id, a.level, a.kind, a.assigned_on) is distinct from (
          coalesce(p_group_id, a.group_id), coalesce(p_unit_id, a.unit_id), coalesce(p_level, a.level),
          coalesce(p_kind, a.kind), coalesce(p_assigned_on, a.assigned_on)
      );
    if not found then
        return false;
    end if;
    v_keys := array(select unnest(v_keys) union select unnest(school.pupils_of_assignments(array[p_assignment_id])));
    perform outbox.enqueue('reports.student', v_keys, 'assignment.edited');
    return true;
end $$;
comment on function school.edit_assignment is 'Change an assignment; null leaves a value as it is.';
