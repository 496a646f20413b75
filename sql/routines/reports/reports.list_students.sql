-- The keys of the topic reports.student, a page at a time, in the order of their ids: every pupil, and every pupil who is
-- gone but still has cached rows.
--   Takes    p_after: the last key of the page before; null for the first. p_limit: most keys of the page.
--   Errors   22P02 p_after is not a key: start again, with null.
create or replace function reports.list_students(p_after text, p_limit integer) returns setof text
language sql stable security definer set search_path = pg_catalog, pg_temp
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
comment on function reports.list_students(text, integer) is 'Page through the keys of the topic reports.student.';

-- The same for a part of the keys: pupils of a cohort, pupils without a cached row, or both.
--   Takes    p_part: {"cohort": id or name, "missing": true}. Pupils who are gone are in no part. Missing: a timeframe
--            has no row for the pupil.
--   Errors   22023 there is no such part, or no such cohort.   22P02 p_after is not a key.
create or replace function reports.list_students(p_after text, p_limit integer, p_part jsonb) returns setof text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_cohort text := p_part ->> 'cohort';
    v_cohort_ids uuid[];
begin
    if p_part - 'cohort' - 'missing' <> '{}' then
        raise exception 'the topic reports.student has no such part: %', p_part
            using errcode = '22023', hint = 'It knows {"cohort": "id or name"} and {"missing": true}.';
    end if;
    v_cohort_ids := array(
        select c.cohort_id from school.cohort as c where c.cohort_id::text = lower(v_cohort) or c.name = v_cohort
    );
    if v_cohort is not null and v_cohort_ids = '{}' then
        raise exception 'there is no cohort %', quote_literal(v_cohort)
            using errcode = '22023', hint = 'Name it as school.cohort does, or by its id.';
    end if;
    return query
    select s.student_id::text
    from school.student as s
    where s.student_id >= coalesce(p_after, '00000000-0000-0000-0000-000000000000')::uuid
      and s.student_id is distinct from p_after::uuid
      and (v_cohort is null or s.cohort_id = any (v_cohort_ids))
      and (not coalesce((p_part ->> 'missing')::boolean, false) or exists (
          select from school.timeframe as t
          where not exists (
              select from reports.report_student_rollups as c
              where c.student_id = s.student_id and c.timeframe_id = t.timeframe_id
          )
      ))
    order by s.student_id
    limit p_limit;
end $$;
comment on function reports.list_students(text, integer, jsonb) is 'Page through a part of the keys of the topic reports.student.';
