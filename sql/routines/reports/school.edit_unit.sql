-- Change a unit; null leaves a value as it is. A new subject enqueues everybody for whom something is set from the unit, or
-- who has feedback on it; a new title nobody, since reports know units by id.
--   Locks    as school.lock_unit_alone when the subject changes; else the unit.
--   Returns  whether anything changed.
--   Errors   SC006 unknown unit.   SC009 subject or title empty or too long.   SC012 wrong isolation level.
create or replace function school.edit_unit(p_unit_id uuid, p_subject text default null, p_title text default null)
returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_subject text;
    v_title text;
    v_keys text[];
begin
    perform school.require_read_committed();
    select u.subject, u.title into v_subject, v_title from school.unit as u where u.unit_id = p_unit_id for update;
    if not found then
        perform school.refuse_unknown('unit', p_unit_id);
    end if;
    perform school.check_text('p_subject', coalesce(p_subject, v_subject));
    perform school.check_text('p_title', coalesce(p_title, v_title));
    if coalesce(p_subject, v_subject) <> v_subject then
        v_keys := school.pupils_of_assignments(school.lock_unit_alone(p_unit_id));
        perform outbox.enqueue('reports.student', v_keys, 'unit.edited');
    elsif coalesce(p_title, v_title) = v_title then
        return false;
    end if;
    update school.unit as u set subject = coalesce(p_subject, u.subject), title = coalesce(p_title, u.title)
    where u.unit_id = p_unit_id;
    return true;
end $$;
comment on function school.edit_unit is 'Change a unit; null leaves a value as it is.';
