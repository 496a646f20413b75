-- Refuse a timeframe that does not exist, so that a reader's typing error is not taken for a pupil without work.
--   Errors   SC007 unknown timeframe.
create or replace function reports.check_timeframe(p_timeframe_id uuid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from school.timeframe as t where t.timeframe_id = p_timeframe_id) then
        perform school.refuse_unknown('timeframe', p_timeframe_id);
    end if;
end $$;
comment on function reports.check_timeframe is 'Refuse a timeframe that does not exist.';
