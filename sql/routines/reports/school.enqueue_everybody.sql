-- Enqueue every pupil, for a change of the timeframes. All of them, since a term's days decide for everybody which work
-- counts; to find those whose work lies in the days that came or went, all that is set and given would have to stand still.
--   Locks    table school.student, share: nobody is added or removed meanwhile. It comes before all row locks.
--   Errors   SC012 wrong isolation level.
create or replace function school.enqueue_everybody(p_reason text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.require_read_committed();
    lock table school.student in share mode;
    perform outbox.enqueue('reports.student', array(select s.student_id::text from school.student as s), p_reason);
end $$;
comment on function school.enqueue_everybody is 'Enqueue every pupil, for a change of the timeframes.';
