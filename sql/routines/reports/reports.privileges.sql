-- What the roles may do in the schemas school and reports; nobody else may do anything. outbox.grant_roles makes it so.
--   Returns  as outbox.privileges.
-- Whoever writes, recalculates or verifies calls functions with their owner's rights, and needs no table. Whoever reads does
-- so with rights of their own, or row security could not tell who asks: hence the tables of recalcd_reader.
create or replace function reports.privileges() returns table (roles text, privileges text, kind text, objects text)
language sql immutable set search_path = pg_catalog, pg_temp
as $$
    values
        ('writer operator reader', 'usage', 'schema', 'school'),
        ('daemon operator reader', 'usage', 'schema', 'reports'),
        ('writer operator', 'execute', 'routine',
            'school.add_cohort school.edit_cohort school.delete_cohort school.add_group school.edit_group school.delete_group '
            'school.add_student school.move_cohort school.remove_student school.join_group school.leave_group '
            'school.add_timeframe school.edit_timeframe school.delete_timeframe '
            'school.add_unit school.edit_unit school.delete_unit '
            'school.set_assignment school.edit_assignment school.delete_assignment '
            'school.record_feedback school.retract_feedback'),

        ('daemon operator', 'execute', 'routine',
            'reports.recalculate_students reports.list_students reports.describe_student'),
        ('operator', 'execute', 'routine', 'reports.backfill_student_rollups reports.written_since'),

        ('reader operator', 'select', 'table',
            'reports.report_student_rollups reports.report_student_unit_rollups '
            'school.cohort school.student school.class_group school.group_membership school.timeframe school.unit '
            'school.assignment'),
        ('reader operator', 'execute', 'routine',
            'reports.student_report reports.student_unit_report reports.group_report reports.cohort_report '
            'reports.check_timeframe school.refuse_unknown')
$$;
comment on function reports.privileges is 'What the roles of recalcd may do in the schemas school and reports.';
