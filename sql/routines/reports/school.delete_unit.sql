-- Delete a unit with its assignments and all feedback on them. Enqueues everybody for whom something was set from the unit,
-- or who had feedback on it.
--   Locks    as school.lock_unit_alone; then as school.drop_assignments.
--   Errors   SC006 unknown unit.   SC012 wrong isolation level.
create or replace function school.delete_unit(p_unit_id uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_assignment_ids uuid[];
    v_keys text[];
begin
    v_assignment_ids := school.lock_unit_alone(p_unit_id);
    v_keys := school.pupils_of_assignments(v_assignment_ids);
    perform school.drop_assignments(v_assignment_ids);
    delete from school.unit as u where u.unit_id = p_unit_id;
    perform outbox.enqueue('reports.student', v_keys, 'unit.deleted');
end $$;
comment on function school.delete_unit is 'Delete a unit with its assignments and all feedback on them.';
