-- Add a group. Affects no pupil.
--   Returns  its id.
--   Errors   SC009 name empty or too long.
create or replace function school.add_group(p_name text) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_group_id uuid;
begin
    perform school.check_text('p_name', p_name);
    insert into school.class_group (name) values (p_name) returning group_id into v_group_id;
    return v_group_id;
end $$;
comment on function school.add_group is 'Add a group.';
