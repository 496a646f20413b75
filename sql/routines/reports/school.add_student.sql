-- Add a pupil. Enqueues the pupil, who has an empty report in every timeframe from then on.
--   Locks    the cohort, for key share, as the foreign key does. Waits while a timeframe is being written.
--   Returns  the pupil's id.
--   Errors   SC008 unknown cohort.   SC009 name empty or too long.   SC012 wrong isolation level.
create or replace function school.add_student(p_cohort_id uuid, p_name text) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_student_id uuid;
begin
    perform school.require_read_committed();
    perform school.check_text('p_name', p_name);
    perform from school.cohort as h where h.cohort_id = p_cohort_id for key share;
    if not found then
        perform school.refuse_unknown('cohort', p_cohort_id);
    end if;
    insert into school.student (cohort_id, name) values (p_cohort_id, p_name) returning student_id into v_student_id;
    perform outbox.enqueue('reports.student', v_student_id::text, 'student.added');
    return v_student_id;
end $$;
comment on function school.add_student is 'Add a pupil.';
