-- The keys of the topic reports.student, a page at a time, in the order of their ids: every pupil, and every pupil who is
-- gone but still has cached rows.
--   Takes    p_after: the last key of the page before; null for the first. p_limit: most keys of the page.
--   Errors   22P02 p_after is not a key: start again, with null.
create or replace function reports.list_students(p_after text, p_limit integer) returns setof text
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select k.student_id::text
    from (select coalesce(p_after, '00000000-0000-0000-0000-000000000000')::uuid as first) as b
    cross join lateral (
        (select s.student_id from school.student as s
         where s.student_id >= b.first and s.student_id is distinct from p_after::uuid
         order by s.student_id limit p_limit)
        union
        (select distinct c.student_id from reports.report_student_rollups as c
         where c.student_id >= b.first and c.student_id is distinct from p_after::uuid
         order by c.student_id limit p_limit)
        union
        (select distinct c.student_id from reports.report_student_unit_rollups as c
         where c.student_id >= b.first and c.student_id is distinct from p_after::uuid
         order by c.student_id limit p_limit)
    ) as k
    order by k.student_id
    limit p_limit
$$;
comment on function reports.list_students is 'Page through the keys of the topic reports.student.';
