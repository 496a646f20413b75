-- Refuse days that are no timeframe.
--   Errors   SC010 a day is null, or the last is before the first.
create or replace function school.check_days(p_starts_on date, p_ends_on date) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if (p_starts_on <= p_ends_on) is not true then
        raise exception 'a timeframe can''t last from % to %', coalesce(p_starts_on::text, 'null'), coalesce(p_ends_on::text, 'null')
            using errcode = 'SC010', hint = 'Pass its first and its last day; -infinity and infinity for open ends.';
    end if;
end $$;
comment on function school.check_days is 'Refuse days that are no timeframe.';
