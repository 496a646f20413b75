-- Drop the partitions of outbox.batch that are older than some days (UTC).
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
    v_dropped text[] := '{}';
begin
    for v_name in
        select c.relname from pg_inherits as i
        join pg_class as c on c.oid = i.inhrelid
        where i.inhparent = 'outbox.batch'::regclass
          and c.relname < 'batch_' || to_char(current_date - p_keep_days, 'YYYYMMDD')
        order by c.relname
    loop
        execute format('drop table outbox.%I', v_name);
        v_dropped := v_dropped || v_name;
    end loop;
    return v_dropped;
end $$;
comment on function outbox.drop_partitions is 'Drop the partitions of outbox.batch that are older than some days.';
