-- Refuse to change the timeframe `all`: reports without a timeframe are reports of it.
--   Errors   SC013 it is the timeframe all.
create or replace function school.refuse_all(p_timeframe_id uuid) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if p_timeframe_id = '00000000-0000-0000-0000-000000000000' then
        raise exception 'the timeframe all stays as it is'
            using errcode = 'SC013', hint = 'Add a timeframe of your own with school.add_timeframe.';
    end if;
end $$;
comment on function school.refuse_all is 'Refuse to change the timeframe all.';
