-- Add a unit. Affects no pupil: nothing is set from it yet.
--   Returns  its id.
--   Errors   SC009 subject or title empty or too long.
create or replace function school.add_unit(p_subject text, p_title text) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_unit_id uuid;
begin
    perform school.check_text('p_subject', p_subject);
    perform school.check_text('p_title', p_title);
    insert into school.unit (subject, title) values (p_subject, p_title) returning unit_id into v_unit_id;
    return v_unit_id;
end $$;
comment on function school.add_unit is 'Add a unit.';
