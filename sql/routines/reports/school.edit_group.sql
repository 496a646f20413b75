-- Rename a group. Affects no pupil's report: reports know nothing of groups' names.
--   Returns  whether anything changed.
--   Errors   SC005 unknown group.   SC009 name empty or too long.
create or replace function school.edit_group(p_group_id uuid, p_name text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.check_text('p_name', p_name);
    update school.class_group as g set name = p_name where g.group_id = p_group_id and g.name <> p_name;
    if found then
        return true;
    end if;
    if not exists (select from school.class_group as g where g.group_id = p_group_id) then
        perform school.refuse_unknown('group', p_group_id);
    end if;
    return false;
end $$;
comment on function school.edit_group is 'Rename a group.';
