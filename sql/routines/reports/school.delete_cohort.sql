-- Delete a cohort that nobody belongs to. Affects no pupil.
--   Locks    the cohort, for update: it waits for pupils who are being added or moved to it.
--   Errors   SC008 unknown cohort.   SC011 it has pupils.   SC012 wrong isolation level.
create or replace function school.delete_cohort(p_cohort_id uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.require_read_committed();
    perform from school.cohort as h where h.cohort_id = p_cohort_id for update;
    if not found then
        perform school.refuse_unknown('cohort', p_cohort_id);
    end if;
    if exists (select from school.student as s where s.cohort_id = p_cohort_id) then
        raise exception 'cohort % still has pupils', p_cohort_id
            using errcode = 'SC011', hint = 'Move them to another cohort with school.move_cohort, or remove them.';
    end if;
    delete from school.cohort as h where h.cohort_id = p_cohort_id;
end $$;
comment on function school.delete_cohort is 'Delete a cohort that nobody belongs to.';
