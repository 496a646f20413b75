-- Move a pupil to another cohort. Enqueues the pupil.
--   Locks    the pupil, for update; then the cohort, for key share.
--   Returns  whether anything changed; moving to where the pupil is does nothing.
--   Errors   SC002 unknown pupil.   SC008 unknown cohort.   SC012 wrong isolation level.
create or replace function school.move_cohort(p_student_id uuid, p_cohort_id uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.lock_pupil(p_student_id, true);
    perform from school.cohort as h where h.cohort_id = p_cohort_id for key share;
    if not found then
        perform school.refuse_unknown('cohort', p_cohort_id);
    end if;
    update school.student as s set cohort_id = p_cohort_id
    where s.student_id = p_student_id and s.cohort_id <> p_cohort_id;
    if not found then
        return false;
    end if;
    perform outbox.enqueue('reports.student', p_student_id::text, 'student.moved');
    return true;
end $$;
comment on function school.move_cohort is 'Move a pupil to another cohort.';
