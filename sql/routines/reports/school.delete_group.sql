-- Delete a group with its memberships, its assignments and all feedback on them. Enqueues whoever was in it or has feedback
-- on its assignments.
--   Locks    the group, for update; then as school.drop_assignments.
--   Errors   SC005 unknown group.   SC012 wrong isolation level.
create or replace function school.delete_group(p_group_id uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_assignment_ids uuid[];
    v_keys text[];
begin
    perform school.require_read_committed();
    perform from school.class_group as g where g.group_id = p_group_id for update;
    if not found then
        perform school.refuse_unknown('group', p_group_id);
    end if;
    v_assignment_ids := array(select a.assignment_id from school.assignment as a where a.group_id = p_group_id);
    v_keys := array(
        select m.student_id::text from school.group_membership as m where m.group_id = p_group_id
        union
        select p.key from unnest(school.pupils_of_assignments(v_assignment_ids)) as p (key)
    );
    perform school.drop_assignments(v_assignment_ids);
    delete from school.group_membership as m where m.group_id = p_group_id;
    delete from school.class_group as g where g.group_id = p_group_id;
    perform outbox.enqueue('reports.student', v_keys, 'group.deleted');
end $$;
comment on function school.delete_group is 'Delete a group with its memberships, its assignments and all feedback on them.';
