-- Switches row security off, and takes back what the roles may do in the schemas school and reports. The roles stay: see
-- outbox 0006. Whoever gave end users the tables revokes that first: without the policies they would see every row.

do $$
declare
    v_table text;
    v_policy text;
    v_role text;
begin
    for v_table, v_policy in
        select format('%I.%I', n.nspname, c.relname), p.polname
        from pg_policy as p
        join pg_class as c on c.oid = p.polrelid
        join pg_namespace as n on n.oid = c.relnamespace
        where n.nspname in ('school', 'reports') and p.polname in ('recalcd_claims', 'recalcd_operator')
    loop
        execute format('drop policy %I on %s', v_policy, v_table);
        execute format('alter table %s disable row level security', v_table);
    end loop;
    foreach v_role in array '{recalcd_writer,recalcd_daemon,recalcd_operator,recalcd_reader}'::text[] loop
        continue when to_regrole(v_role) is null;
        execute format('revoke all on all tables in schema school, reports from %I', v_role);
        execute format('revoke all on all routines in schema school, reports from %I', v_role);
        execute format('revoke all on schema school, reports from %I', v_role);
    end loop;
    grant execute on all routines in schema school, reports to public;
end $$;
