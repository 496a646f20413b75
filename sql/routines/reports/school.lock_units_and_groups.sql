-- Lock units and groups before changing what is set from the ones for the others. The order of all locks of schema school:
-- pupils, units, groups, assignments, feedback; rows of a table in the order of their ids. So no two writers deadlock.
--   Locks    the school.unit rows, for key share: against deleting and editing. Then the school.class_group rows, for no key
--            update: against everybody who changes who is in a group, or what is set for it.
--   Takes    repeats are harmless; null is skipped.
--   Errors   SC006 unknown unit.   SC005 unknown group.   SC012 wrong isolation level.
create or replace function school.lock_units_and_groups(p_unit_ids uuid[], p_group_ids uuid[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
begin
    perform school.require_read_committed();
    for v_id in select distinct u.id from unnest(p_unit_ids) as u (id) where u.id is not null order by u.id loop
        perform from school.unit as u where u.unit_id = v_id for key share;
        if not found then
            perform school.refuse_unknown('unit', v_id);
        end if;
    end loop;
    for v_id in select distinct g.id from unnest(p_group_ids) as g (id) where g.id is not null order by g.id loop
        perform from school.class_group as g where g.group_id = v_id for no key update;
        if not found then
            perform school.refuse_unknown('group', v_id);
        end if;
    end loop;
end $$;
comment on function school.lock_units_and_groups is 'Lock units and groups before changing what is set from the ones for the others.';
