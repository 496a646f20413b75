-- Show whoever may read the tables of pupils all of their rows again: the opposite of reports.enable_row_security.
--   Locks    access exclusive, for a moment, on the tables that have the policies; gives up after two seconds.
--   Needs    the rights of the tables' owner.
--   Errors   42501 not the owner.   55P03 could not get the locks: try again.
-- Policies of the application's own stay, without effect until row security is enabled again.
create or replace procedure reports.disable_row_security()
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s'
as $$
declare
    v_table text;
    v_policy text;
begin
    for v_table, v_policy in
        select p.polrelid::regclass, p.polname from pg_policy as p
        where p.polname in ('recalcd_claims', 'recalcd_operator')
          and p.polrelid in (
              select c.oid from pg_class as c where c.relnamespace in ('school'::regnamespace, 'reports'::regnamespace)
          )
        order by 1, 2
    loop
        execute format('drop policy %I on %s', v_policy, v_table);
        execute format('alter table %s disable row level security', v_table);
    end loop;
end $$;
comment on procedure reports.disable_row_security is 'Show whoever may read the tables of pupils all of their rows again.';
