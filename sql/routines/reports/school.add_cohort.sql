-- Add a cohort. Affects no pupil.
--   Returns  its id.
--   Errors   SC009 name empty or too long.
create or replace function school.add_cohort(p_name text) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_cohort_id uuid;
begin
    perform school.check_text('p_name', p_name);
    insert into school.cohort (name) values (p_name) returning cohort_id into v_cohort_id;
    return v_cohort_id;
end $$;
comment on function school.add_cohort is 'Add a cohort.';
