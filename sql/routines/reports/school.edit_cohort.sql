-- Rename a cohort. Affects no pupil's report: reports know cohorts by id.
--   Returns  whether anything changed.
--   Errors   SC008 unknown cohort.   SC009 name empty or too long.
create or replace function school.edit_cohort(p_cohort_id uuid, p_name text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.check_text('p_name', p_name);
    update school.cohort as h set name = p_name where h.cohort_id = p_cohort_id and h.name <> p_name;
    if found then
        return true;
    end if;
    if not exists (select from school.cohort as h where h.cohort_id = p_cohort_id) then
        perform school.refuse_unknown('cohort', p_cohort_id);
    end if;
    return false;
end $$;
comment on function school.edit_cohort is 'Rename a cohort.';
