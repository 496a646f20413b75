-- Loses the cached reports; a backfill makes them again. Refuses while reports are owed, unless told to lose the events.
do $$
declare
    v_event_count bigint;
begin
    select count(*) into v_event_count from outbox.event as e where e.topic = 'reports.student';
    if v_event_count > 0 and current_setting('recalcd.lose_events', true) is distinct from 'on' then
        raise exception '% events of topic reports.student are pending', v_event_count
            using errcode = '55006',
                  hint = 'Drain first: recalcd run --drain. Or lose them: set recalcd.lose_events = on.';
    end if;
end $$;

-- Nobody is left to recalculate these keys, so nothing is owed to them.
delete from outbox.event where topic = 'reports.student';
delete from outbox.failure where topic = 'reports.student';
delete from outbox.suspect where topic = 'reports.student';
delete from outbox.topic where topic = 'reports.student';
drop table reports.report_student_unit_rollups;
drop table reports.report_student_rollups;
drop schema reports;
