-- Drop the partitions of outbox.batch that are older than some days (UTC). Of those that hold batches, as many as days
-- are to be kept always stay: else a clock that jumps a year ahead for a minute would cost the whole history.
--   Locks    access exclusive on outbox.batch, for a moment. Gives up after 100 ms, since everybody queues behind it.
--   Takes    p_keep_days: whole days before today that stay.
--   Returns  the names of those it dropped.
--   Errors   55P03 could not get the lock: try again later.
create or replace function outbox.drop_partitions(p_keep_days integer) returns text[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set timezone = 'UTC' set lock_timeout = '100ms'
as $$
declare
    v_name text;
    v_is_old boolean;
    v_holds_batches boolean;
    v_kept_days integer := 0;
    v_dropped text[] := '{}';
begin
    for v_name, v_is_old in
        select c.relname, c.relname < 'batch_' || to_char(current_date - p_keep_days, 'YYYYMMDD')
        from pg_inherits as i
        join pg_class as c on c.oid = i.inhrelid
        where i.inhparent = 'outbox.batch'::regclass and c.relname < 'batch_' || to_char(current_date, 'YYYYMMDD')
        order by c.relname desc
    loop
        execute format('select exists (select from outbox.%I)', v_name) into v_holds_batches;
        if v_is_old and (not v_holds_batches or v_kept_days >= p_keep_days) then
            execute format('drop table outbox.%I', v_name);
            v_dropped := v_name || v_dropped;
        else
            v_kept_days := v_kept_days + v_holds_batches::integer;
        end if;
    end loop;
    return v_dropped;
end $$;
comment on function outbox.drop_partitions is 'Drop the partitions of outbox.batch that are older than some days.';
