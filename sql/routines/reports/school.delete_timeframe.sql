-- Delete a timeframe. Enqueues every pupil, whose cached rows for it go with the recalculation. Assignments and feedback stay.
--   Locks    as school.enqueue_everybody; then the timeframe.
--   Errors   SC007 unknown timeframe.   SC012 wrong isolation level.   SC013 it is the timeframe all.
create or replace function school.delete_timeframe(p_timeframe_id uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.refuse_all(p_timeframe_id);
    perform school.enqueue_everybody('timeframe.deleted');
    delete from school.timeframe as t where t.timeframe_id = p_timeframe_id;
    if not found then
        perform school.refuse_unknown('timeframe', p_timeframe_id);
    end if;
end $$;
comment on function school.delete_timeframe is 'Delete a timeframe.';
