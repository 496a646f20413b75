-- Change a timeframe; null leaves a value as it is. New days enqueue every pupil; a new name nobody, since reports know
-- timeframes by id.
--   Locks    the timeframe, for update. New days: as school.enqueue_everybody, before it.
--   Returns  whether anything changed.
--   Errors   SC007 unknown timeframe.   SC009 name empty or too long.   SC010 it ends before it starts.
--            SC012 wrong isolation level.   SC013 it is the timeframe all.
create or replace function school.edit_timeframe(
    p_timeframe_id uuid, p_name text default null, p_starts_on date default null, p_ends_on date default null
) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_old school.timeframe;
    v_new school.timeframe;
begin
    perform school.require_read_committed();
    perform school.refuse_all(p_timeframe_id);
    if p_starts_on is not null or p_ends_on is not null then
        lock table school.student in share mode; -- before the row, as everybody does
    end if;
    select t.timeframe_id, t.name, t.starts_on, t.ends_on into v_old
    from school.timeframe as t
    where t.timeframe_id = p_timeframe_id
    for update;
    if not found then
        perform school.refuse_unknown('timeframe', p_timeframe_id);
    end if;
    v_new := (
        p_timeframe_id, coalesce(p_name, v_old.name), coalesce(p_starts_on, v_old.starts_on), coalesce(p_ends_on, v_old.ends_on)
    );
    perform school.check_text('p_name', v_new.name);
    perform school.check_days(v_new.starts_on, v_new.ends_on);
    if v_new is not distinct from v_old then
        return false;
    end if;
    update school.timeframe as t set name = v_new.name, starts_on = v_new.starts_on, ends_on = v_new.ends_on
    where t.timeframe_id = p_timeframe_id;
    if (v_new.starts_on, v_new.ends_on) is distinct from (v_old.starts_on, v_old.ends_on) then
        perform school.enqueue_everybody('timeframe.edited');
    end if;
    return true;
end $$;
comment on function school.edit_timeframe is 'Change a timeframe; null leaves a value as it is.';
