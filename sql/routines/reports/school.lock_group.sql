-- Lock a group before changing who is in it. Many may do that at once; whoever changes what is set for it waits, and so
-- sees the new member, or is seen by the new member's recalculation.
--   Locks    the school.class_group row, for share.
--   Errors   SC005 unknown group.
create or replace function school.lock_group(p_group_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform from school.class_group as g where g.group_id = p_group_id for share;
    if not found then
        perform school.refuse_unknown('group', p_group_id);
    end if;
end $$;
comment on function school.lock_group is 'Lock a group before changing who is in it.';
