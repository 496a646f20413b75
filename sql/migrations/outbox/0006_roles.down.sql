-- Takes back what the roles may do in schema outbox, and lets everybody execute its routines again, as releases without
-- roles expect it. The roles stay: other databases of the cluster may use them, and logins be members of them. Whoever
-- knows that none does: drop role recalcd_writer, recalcd_daemon, recalcd_operator, recalcd_reader.

do $$
declare
    v_role text;
begin
    foreach v_role in array '{recalcd_writer,recalcd_daemon,recalcd_operator,recalcd_reader}'::text[] loop
        continue when to_regrole(v_role) is null;
        execute format('revoke all on all tables in schema outbox from %I', v_role);
        execute format('revoke all on all routines in schema outbox from %I', v_role);
        execute format('revoke all on schema outbox from %I', v_role);
    end loop;
    grant execute on all routines in schema outbox to public;
end $$;
