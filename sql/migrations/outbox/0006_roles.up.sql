-- Adds the roles of least privilege, which nobody logs in as: grant them to the logins that do. They belong to the whole
-- cluster, so another database may have made them already, or may be making them now. What each may do is declared in
-- outbox.privileges and reports.privileges, and granted by outbox.grant_roles with every migrate up. Locks nothing.

do $$
declare
    v_role text;
    v_comment text;
begin
    for v_role, v_comment in values
        ('recalcd_writer', 'recalcd: may enqueue, and call the functions that write. For the application.'),
        ('recalcd_daemon', 'recalcd: may do what the daemon does. For the login of recalcd run.'),
        ('recalcd_operator', 'recalcd: may do what the commands do, migrate left aside. For people.'),
        ('recalcd_reader', 'recalcd: may read the reports. For the application, or for its users under row security.')
    loop
        continue when to_regrole(v_role) is not null;
        begin
            execute format('create role %I nologin', v_role);
            execute format('comment on role %I is %L', v_role, v_comment);
        exception
            when duplicate_object or unique_violation then
                null;  -- another database was quicker
            when insufficient_privilege then
                exit;  -- outbox.grant_roles says what an administrator has to do
        end;
    end loop;
end $$;
