-- Refuse a text that a column would refuse: its error would show the whole row, names and all.
--   Takes    p_parameter: its name, for the message. p_max: most characters.
--   Errors   SC009 null, empty or too long.
create or replace function school.check_text(p_parameter text, p_value text, p_max integer default 200) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if p_value is null or length(p_value) not between 1 and p_max then
        raise exception '% is null, empty or longer than % characters', p_parameter, p_max
            using errcode = 'SC009', hint = format('Pass 1 to %s characters.', p_max);
    end if;
end $$;
comment on function school.check_text is 'Refuse a text that is null, empty or too long.';
