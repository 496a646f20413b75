-- Lock a unit, and the groups it is set for, before changing or deleting it.
--   Locks    the school.unit row, for update: nothing new is set from it. Then the groups of its assignments, as
--            school.lock_units_and_groups does; one that is deleted meanwhile takes its assignments along.
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
    perform from school.class_group as g
    where g.group_id in (select a.group_id from school.assignment as a where a.unit_id = p_unit_id)
    order by g.group_id
    for no key update;
    return array(select a.assignment_id from school.assignment as a where a.unit_id = p_unit_id);
end $$;
comment on function school.lock_unit_alone is 'Lock a unit, and the groups it is set for; returns its assignments.';
