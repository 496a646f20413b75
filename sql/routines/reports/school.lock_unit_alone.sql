-- Lock a unit, and the groups it is set for, before changing or deleting it.
--   Locks    the school.unit row, for update: nothing new is set from it. Then the groups of its assignments, as
--            school.lock_units_and_groups.
--   Returns  its assignments.
--   Errors   SC006 unknown unit.   SC012 wrong isolation level.
create or replace function school.lock_unit_alone(p_unit_id uuid) returns uuid[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.require_read_committed();
    perform from school.unit as u where u.unit_id = p_unit_id for update;
    if not found then
        perform school.refuse_unknown('unit', p_unit_id);
    end if;
    loop
        begin
            perform school.lock_units_and_groups('{}', array(select a.group_id from school.assignment as a where a.unit_id = p_unit_id));
            exit;
        exception when sqlstate 'SC005' then
            null; -- a group was deleted while we waited for it, and its assignments with it: look again
        end;
    end loop;
    return array(select a.assignment_id from school.assignment as a where a.unit_id = p_unit_id);
end $$;
comment on function school.lock_unit_alone is 'Lock a unit, and the groups it is set for; returns its assignments.';
