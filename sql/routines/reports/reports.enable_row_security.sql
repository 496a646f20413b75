-- Show every role but the tables' owner and recalcd_operator only the pupils that its claims name: a pupil the own rows, a
-- teacher those of the members of the own groups. For applications that hand database roles to end users.
--   Locks    access exclusive, for a moment, on the tables named below; gives up after two seconds.
--   Needs    the rights of the tables' owner. Whoever can set a claim can be anybody: see docs/row-security.md.
--   Claims   app_metadata.student_id and app_metadata.group_ids of request.jwt.claims; where no such token was given, the
--            settings recalcd.student_id and recalcd.group_ids (ids with commas between them). No claim shows no row.
--   Errors   42501 not the owner.   55P03 could not get the locks: try again.   And of a query later on: 22P02 or 22023 a
--            claim is malformed.
-- The claims stand in sub-selects of their own, so that a query reads them once and not for every row; the pupils of a
-- teacher's groups are only looked up when the row is not the pupil's own. No routine is named, since policies would keep
-- migrate from dropping it.
create or replace procedure reports.enable_row_security()
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s'
as $$
declare
    v_token constant text := $text$nullif(current_setting('request.jwt.claims', true), '')::jsonb$text$;
    v_student constant text := format($text$(select case when %1$s is null
        then nullif(current_setting('recalcd.student_id', true), '')
        else %1$s #>> '{app_metadata,student_id}' end::uuid)$text$, v_token);
    v_groups constant text := format($text$((select (case when %1$s is null
        then string_to_array(nullif(current_setting('recalcd.group_ids', true), ''), ',')
        else array(select jsonb_array_elements_text(nullif(%1$s #> '{app_metadata,group_ids}', 'null')))
        end)::uuid[])::uuid[])$text$, v_token);
    v_members constant text := format($text$array(
        select m.student_id from school.group_membership as m where m.group_id = any (%s))$text$, v_groups);
    v_table text;
begin
    call reports.disable_row_security();
    foreach v_table in array array[
        'reports.report_student_rollups', 'reports.report_student_unit_rollups', 'school.student', 'school.feedback'
    ] loop
        execute format('create policy recalcd_claims on %s for select using (student_id = %s or student_id = any (%s))',
                       v_table, v_student, v_members);
    end loop;
    execute format('create policy recalcd_claims on school.group_membership for select '
                   'using (student_id = %s or group_id = any (%s))', v_student, v_groups);
    for v_table in select p.polrelid::regclass from pg_policy as p where p.polname = 'recalcd_claims' loop
        execute format('alter table %s enable row level security', v_table);
        if to_regrole('recalcd_operator') is not null then
            execute format('create policy recalcd_operator on %s for select to recalcd_operator using (true)', v_table);
        end if;
    end loop;
end $$;
comment on procedure reports.enable_row_security is 'Show end users only the pupils that their claims name.';
