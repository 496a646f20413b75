-- Raise the error for an id that nothing has. One place, so that every function says the same of the same thing.
--   Takes    p_what: pupil, assignment, group, unit, timeframe or cohort.
--   Errors   SC002 unknown pupil.   SC003 unknown assignment.   SC005 unknown group.   SC006 unknown unit.
--            SC007 unknown timeframe.   SC008 unknown cohort.
create or replace function school.refuse_unknown(p_what text, p_id uuid) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'there is no % %', p_what, coalesce(p_id::text, 'null')
        using errcode = case p_what
                  when 'pupil' then 'SC002' when 'assignment' then 'SC003' when 'group' then 'SC005'
                  when 'unit' then 'SC006' when 'timeframe' then 'SC007' when 'cohort' then 'SC008'
              end,
              hint = format('Check the id, and whether the %s was deleted meanwhile.', p_what);
end $$;
comment on function school.refuse_unknown is 'Raise the error for an id that nothing has.';
