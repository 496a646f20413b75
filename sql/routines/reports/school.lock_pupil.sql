-- Lock a pupil against removal; with p_alone, against feedback and changes of groups, too.
--   Locks    the school.student row: for key share, as a foreign key's check would moments later; alone: for update.
--   Errors   SC002 unknown pupil.   SC012 wrong isolation level.
create or replace function school.lock_pupil(p_student_id uuid, p_alone boolean default false) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform school.require_read_committed();
    if p_alone then
        perform from school.student as s where s.student_id = p_student_id for update;
    else
        perform from school.student as s where s.student_id = p_student_id for key share;
    end if;
    if not found then
        perform school.refuse_unknown('pupil', p_student_id);
    end if;
end $$;
comment on function school.lock_pupil is 'Lock a pupil, first of all rows.';
