-- Add a timeframe. Enqueues every pupil: each has a report for it from then on.
--   Locks    as school.enqueue_everybody.
--   Takes    p_starts_on, p_ends_on: first and last day; -infinity and infinity for open ends.
--   Returns  its id.
--   Errors   SC009 name empty or too long.   SC010 it ends before it starts.   SC012 wrong isolation level.
create or replace function school.add_timeframe(p_name text, p_starts_on date, p_ends_on date) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_timeframe_id uuid;
begin
    perform school.check_text('p_name', p_name);
    perform school.check_days(p_starts_on, p_ends_on);
    perform school.enqueue_everybody('timeframe.added');
    insert into school.timeframe (name, starts_on, ends_on)
    values (p_name, p_starts_on, p_ends_on)
    returning timeframe_id into v_timeframe_id;
    return v_timeframe_id;
end $$;
comment on function school.add_timeframe is 'Add a timeframe.';
