-- Refuse what an assignment can't be.
--   Errors   SC009 level, kind or date is null or out of range.
create or replace function school.check_assignment(p_level integer, p_kind text, p_assigned_on date) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if p_level is null or p_level not between 1 and 99 then
        raise exception 'level % is not between 1 and 99', coalesce(p_level::text, 'null')
            using errcode = 'SC009', hint = 'Pass 1 for the lowest level.';
    end if;
    if p_kind is null or p_kind not in ('activity', 'assessment') then
        raise exception 'the kind of an assignment is neither activity nor assessment'
            using errcode = 'SC009', hint = 'Pass activity for practice, assessment for a test.';
    end if;
    if p_assigned_on is null or not isfinite(p_assigned_on) then
        raise exception 'an assignment needs a day'
            using errcode = 'SC009', hint = 'Pass the day on which it is set; it decides the timeframes.';
    end if;
end $$;
comment on function school.check_assignment is 'Refuse what an assignment can''t be.';
