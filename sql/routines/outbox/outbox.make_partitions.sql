-- Make the partitions of outbox.batch for today and some days ahead (UTC).
--   Locks    advisory (29283, 3), so that two daemons do not collide; share update exclusive on outbox.batch, which
--            inserts do not notice.
--   Returns  the names of those it made; empty when all were there.
create or replace function outbox.make_partitions(p_days_ahead integer) returns text[]
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC'
as $$
declare
    v_day date;
    v_name text;
    v_made text[] := '{}';
begin
    perform pg_advisory_xact_lock(29283, 3);
    for v_day in
        select d.day::date from generate_series(current_date, current_date + p_days_ahead, interval '1 day') as d (day)
    loop
        v_name := 'batch_' || to_char(v_day, 'YYYYMMDD');
        continue when to_regclass('outbox.' || v_name) is not null;
        execute format('create table outbox.%I (like outbox.batch including defaults including constraints)', v_name);
        execute format('alter table outbox.batch attach partition outbox.%I for values from (%L) to (%L)', v_name,
                       v_day::timestamptz, (v_day + 1)::timestamptz);
        execute format('comment on table outbox.%I is %L', v_name, 'Batches started on ' || v_day || ' (UTC).');
        v_made := v_made || v_name;
    end loop;
    return v_made;
end $$;
comment on function outbox.make_partitions is 'Make the partitions of outbox.batch for today and some days ahead.';
