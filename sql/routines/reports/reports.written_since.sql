-- Rows of the source that concern pupils and were written since the pupils' cached rows were last changed: of a pupil who
-- has drifted, those that somebody wrote without calling outbox.enqueue.
--   Locks    nothing.
--   Takes    p_keys: ids of pupils as text. p_limit: most rows of each pupil, the youngest first.
--   Returns  key, the source table, row_key: its primary key, written_at: null unless track_commit_timestamp is on.
--   Errors   22P02 a key is not the id of a pupil.
-- Younger is told by xmin, the transaction that wrote a row. Blind spots: a row that was deleted has none; a transaction
-- that began before the cached rows were changed and committed afterwards looks older, unless commit times are tracked.
create or replace function reports.written_since(p_keys text[], p_limit integer)
returns table (key text, source text, row_key jsonb, written_at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    with pupil as materialized (
        select s.student_id, min(c.age) as cached_age, max(c.calculated_at) as calculated_at
        from unnest(reports.student_ids(p_keys)) as s (student_id)
        left join lateral (
            select age(r.xmin) as age, r.calculated_at
            from reports.report_student_rollups as r where r.student_id = s.student_id
            union all
            select age(u.xmin), u.calculated_at
            from reports.report_student_unit_rollups as u where u.student_id = s.student_id
        ) as c on true
        group by s.student_id
    ), assigned as materialized (
        select m.student_id, a.assignment_id, a.unit_id, a.xmin
        from pupil as p
        join school.group_membership as m on m.student_id = p.student_id
        join school.assignment as a on a.group_id = m.group_id
        union
        select f.student_id, a.assignment_id, a.unit_id, a.xmin
        from pupil as p
        join school.feedback as f on f.student_id = p.student_id
        join school.assignment as a on a.assignment_id = f.assignment_id
    ), written as (
        select s.student_id, 'school.student' as source, jsonb_build_object('student_id', s.student_id) as row_key, s.xmin
        from school.student as s
        where s.student_id in (select p.student_id from pupil as p)
        union all
        select m.student_id, 'school.group_membership',
               jsonb_build_object('student_id', m.student_id, 'group_id', m.group_id), m.xmin
        from school.group_membership as m
        where m.student_id in (select p.student_id from pupil as p)
        union all
        select f.student_id, 'school.feedback',
               jsonb_build_object('student_id', f.student_id, 'assignment_id', f.assignment_id), f.xmin
        from school.feedback as f
        where f.student_id in (select p.student_id from pupil as p)
        union all
        select a.student_id, 'school.assignment', jsonb_build_object('assignment_id', a.assignment_id), a.xmin
        from assigned as a
        union all
        select distinct a.student_id, 'school.unit', jsonb_build_object('unit_id', u.unit_id), u.xmin::text::xid
        from assigned as a
        join school.unit as u on u.unit_id = a.unit_id
        union all
        select p.student_id, 'school.timeframe', jsonb_build_object('timeframe_id', t.timeframe_id), t.xmin
        from pupil as p
        cross join school.timeframe as t
    ), dated as (
        select w.student_id, w.source, w.row_key, age(w.xmin) as age,
               case when current_setting('track_commit_timestamp')::boolean then pg_xact_commit_timestamp(w.xmin) end as written_at
        from written as w
    )
    select r.student_id::text, r.source, r.row_key, r.written_at
    from (
        select d.student_id, d.source, d.row_key, d.written_at, d.age,
               row_number() over (partition by d.student_id order by d.age, d.source, d.row_key) as number
        from dated as d
        join pupil as p on p.student_id = d.student_id
        where p.cached_age is null or d.age < p.cached_age or d.written_at >= p.calculated_at
    ) as r
    where r.number <= p_limit
    order by r.student_id, r.number
$$;
comment on function reports.written_since is 'Rows of the source that were written since pupils'' cached rows were last changed.';
