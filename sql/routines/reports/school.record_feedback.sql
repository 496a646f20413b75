-- Record a teacher's feedback on a pupil's work, in place of what there was. Enqueues the pupil.
--   Locks    the pupil and the assignment, for key share, which the foreign keys would lock anyway; then the feedback.
--            The pupil first: it keeps school.leave_group waiting, so that whoever counts the members of the assignment's
--            group counts this pupil while the feedback is in flight.
--   Takes    p_score: 0 to 1, kept with four decimals. p_comment: null for none; up to 10,000 characters.
--            p_given_by: the teacher, as the application knows teachers.
--   Returns  whether anything changed; the same score, comment and teacher again write and enqueue nothing.
--   Errors   SC001 score null, NaN or outside 0 to 1.   SC002 unknown pupil.   SC003 unknown assignment.
--            SC004 the pupil is not in the assignment's group.   SC009 comment too long.   SC012 wrong isolation level.
create or replace function school.record_feedback(
    p_assignment_id uuid, p_student_id uuid, p_score numeric, p_comment text default null, p_given_by uuid default null
) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_group_id uuid;
begin
    if (p_score between 0 and 1) is not true then
        raise exception 'score % is not between 0 and 1', coalesce(p_score::text, 'null')
            using errcode = 'SC001', hint = 'Divide by the highest score possible, for instance 17 of 20 is 0.85.';
    end if;
    if length(p_comment) > 10000 then
        raise exception 'the comment is longer than 10,000 characters'
            using errcode = 'SC009', hint = 'Shorten it, or keep the text elsewhere and link to it.';
    end if;
    perform school.lock_pupil(p_student_id);
    select a.group_id into v_group_id
    from school.assignment as a
    where a.assignment_id = p_assignment_id
    for key share;
    if not found then
        perform school.refuse_unknown('assignment', p_assignment_id);
    end if;
    if not exists (
        select from school.group_membership as m where m.student_id = p_student_id and m.group_id = v_group_id
    ) then
        raise exception 'pupil % is not in the group of assignment %', p_student_id, p_assignment_id
            using errcode = 'SC004', hint = format('Let the pupil join group %s first: school.join_group.', v_group_id);
    end if;

    insert into school.feedback as f (assignment_id, student_id, score, comment, given_by)
    values (p_assignment_id, p_student_id, p_score, p_comment, p_given_by)
    on conflict (student_id, assignment_id) do update
    set score = excluded.score, comment = excluded.comment, given_by = excluded.given_by, given_at = excluded.given_at
    where (f.score, f.comment, f.given_by) is distinct from (excluded.score, excluded.comment, excluded.given_by);
    if not found then
        return false;
    end if;
    perform outbox.enqueue('reports.student', p_student_id::text, 'feedback.recorded');
    return true;
end $$;
comment on function school.record_feedback is 'Record a teacher''s feedback on a pupil''s work, in place of what there was.';
