-- Recalculate both cached tables for pupils. A timeframe without assignments has a row in report_student_rollups, too;
-- a pupil or timeframe that is gone loses its rows.
--   Locks    the keys (outbox.lock_keys, sorted), in a statement of its own; then nothing that a writer holds.
--   Needs    read committed: the counts must see what the previous holder of the keys committed.
--   Takes    p_keys: distinct ids of pupils as text, any order.
--   Returns  p_changed_keys: those of which a cached row changed, sorted. A clean key writes nothing; safe to repeat.
--   Errors   RC001 wrong isolation level: give up.   RC003 a key is null: give up.
--            22P02 a key is not the id of a pupil, as uuid writes it: give up.
-- One statement after the lock, so that both tables come from one snapshot of the source. What is true meets what is
-- cached in full joins: they find new, changed and stale rows at once, and can't be planned as nested loops, however
-- wrong the statistics are. Every other join leads to an index: so one plan serves one pupil and a thousand, reads what
-- is theirs and nothing else of the school, and is made once a session. (Planning took most of a call for one pupil.)
create or replace procedure reports.recalculate_students(in p_keys text[], inout p_changed_keys text[] default null)
language plpgsql security definer set search_path = pg_catalog, pg_temp
-- Compiling and spilling would cost a batch more than its work. The planner is not asked about statistics that may have
-- seen the tables empty, nor told that pages read for every batch are on disk.
set jit = off set work_mem = '32MB'
set plan_cache_mode = force_generic_plan set enable_seqscan = off set random_page_cost = 1.1
as $$
declare
    v_student_ids uuid[];
begin
    perform outbox.lock_keys('reports.student', p_keys);
    v_student_ids := reports.student_ids(p_keys);

    with standing as materialized (
        select s.student_id, s.timeframe_id, s.subject, s.unit_id,
               reports.average(s.feedback_points - s.assessment_points, s.feedback_count - s.assessment_count) as activity_average,
               reports.average(s.assessment_points, s.assessment_count) as assessment_average,
               reports.average(s.feedback_points, s.feedback_count) as average,
               s.feedback_count - s.assessment_count as activity_count, s.assessment_count, s.feedback_count,
               s.assignment_count, s.unit_count, s.working_level, s.latest_given_at
        from reports.standings(v_student_ids) as s
    ), unit_change as (
        select coalesce(n.student_id, o.student_id) as student_id, coalesce(n.timeframe_id, o.timeframe_id) as timeframe_id,
               coalesce(n.unit_id, o.unit_id) as unit_id, n.student_id is null as is_stale,
               n.activity_average, n.assessment_average, n.average,
               n.activity_count, n.assessment_count, n.feedback_count, n.assignment_count, n.working_level, n.latest_given_at
        from (
            select s.student_id, s.timeframe_id, s.unit_id, s.activity_average, s.assessment_average, s.average,
                   s.activity_count, s.assessment_count, s.feedback_count, s.assignment_count, s.working_level, s.latest_given_at
            from standing as s
            where s.unit_id is not null
        ) as n
        full join (
            select c.student_id, c.timeframe_id, c.unit_id, c.activity_average, c.assessment_average, c.average,
                   c.activity_count, c.assessment_count, c.feedback_count, c.assignment_count, c.working_level, c.latest_given_at
            from reports.report_student_unit_rollups as c
            where c.student_id = any (v_student_ids)
        ) as o on o.student_id = n.student_id and o.timeframe_id = n.timeframe_id and o.unit_id = n.unit_id
        -- Column by column: comparing whole rows would build a record of each. The ids of the join are equal, or null.
        where (n.student_id, n.activity_average, n.assessment_average, n.average, n.activity_count, n.assessment_count,
               n.feedback_count, n.assignment_count, n.working_level, n.latest_given_at)
              is distinct from
              (o.student_id, o.activity_average, o.assessment_average, o.average, o.activity_count, o.assessment_count,
               o.feedback_count, o.assignment_count, o.working_level, o.latest_given_at)
    ), unit_removed as (
        delete from reports.report_student_unit_rollups as c
        using unit_change as d
        where d.is_stale and c.student_id = d.student_id and c.timeframe_id = d.timeframe_id and c.unit_id = d.unit_id
    ), unit_written as (
        insert into reports.report_student_unit_rollups as c (
            student_id, timeframe_id, unit_id, activity_average, assessment_average, average,
            activity_count, assessment_count, feedback_count, assignment_count, working_level, latest_given_at, calculated_at
        )
        select d.student_id, d.timeframe_id, d.unit_id, d.activity_average, d.assessment_average, d.average,
               d.activity_count, d.assessment_count, d.feedback_count, d.assignment_count, d.working_level, d.latest_given_at,
               clock_timestamp()
        from unit_change as d
        where not d.is_stale
        on conflict (student_id, timeframe_id, unit_id) do update set
            activity_average = excluded.activity_average, assessment_average = excluded.assessment_average,
            average = excluded.average, activity_count = excluded.activity_count,
            assessment_count = excluded.assessment_count, feedback_count = excluded.feedback_count,
            assignment_count = excluded.assignment_count, working_level = excluded.working_level,
            latest_given_at = excluded.latest_given_at, calculated_at = excluded.calculated_at
    ), pupil as (
        -- Of each filtered maximum there is one candidate: the row of the pupil and timeframe as a whole.
        select s.student_id, s.timeframe_id,
               max(s.activity_average) filter (where s.subject is null) as activity_average,
               max(s.assessment_average) filter (where s.subject is null) as assessment_average,
               max(s.average) filter (where s.subject is null) as average,
               max(s.activity_count) filter (where s.subject is null) as activity_count,
               max(s.assessment_count) filter (where s.subject is null) as assessment_count,
               max(s.feedback_count) filter (where s.subject is null) as feedback_count,
               max(s.assignment_count) filter (where s.subject is null) as assignment_count,
               max(s.latest_given_at) as latest_given_at,
               jsonb_object_agg(s.subject, jsonb_build_object(
                   'average', s.average, 'unit_count', s.unit_count, 'feedback_count', s.feedback_count,
                   'assignment_count', s.assignment_count, 'working_level', s.working_level
               )) filter (where s.subject is not null) as subjects
        from standing as s
        where s.unit_id is null
        group by s.student_id, s.timeframe_id
    ), latest as (
        -- The feedback once for all timeframes. Fenced off: an ordinary join could read it once for each of them.
        select distinct on (m.student_id, m.timeframe_id) m.student_id, m.timeframe_id, m.assignment_id, m.score, m.comment
        from (
            select p.student_id, p.timeframe_id, f.assignment_id, f.score, f.comment
            from pupil as p
            full join (
                select f.student_id, f.given_at, f.assignment_id, f.score, f.comment
                from school.feedback as f
                where f.student_id = any (v_student_ids)
            ) as f on f.student_id = p.student_id and f.given_at = p.latest_given_at
            offset 0
        ) as m
        join school.timeframe as t on t.timeframe_id = m.timeframe_id
        join school.assignment as a on a.assignment_id = m.assignment_id and a.assigned_on between t.starts_on and t.ends_on
        order by m.student_id, m.timeframe_id, m.assignment_id desc
    ), pupil_change as (
        select coalesce(n.student_id, o.student_id) as student_id, coalesce(n.timeframe_id, o.timeframe_id) as timeframe_id,
               n.student_id is null as is_stale, n.cohort_id, n.activity_average, n.assessment_average, n.average,
               n.activity_count, n.assessment_count, n.feedback_count, n.assignment_count, n.subjects,
               n.latest_assignment_id, n.latest_score, n.latest_comment, n.latest_given_at
        from (
            select b.student_id, b.timeframe_id, b.cohort_id, p.activity_average, p.assessment_average, p.average,
                   coalesce(p.activity_count, 0) as activity_count, coalesce(p.assessment_count, 0) as assessment_count,
                   coalesce(p.feedback_count, 0) as feedback_count, coalesce(p.assignment_count, 0) as assignment_count,
                   coalesce(p.subjects, '{}') as subjects, l.assignment_id as latest_assignment_id,
                   l.score as latest_score, l.comment as latest_comment, p.latest_given_at
            from (
                select s.student_id, s.cohort_id, t.timeframe_id, t.starts_on, t.ends_on
                from school.student as s
                cross join school.timeframe as t
                where s.student_id = any (v_student_ids)
            ) as b
            full join pupil as p on p.student_id = b.student_id and p.timeframe_id = b.timeframe_id
            full join latest as l on l.student_id = p.student_id and l.timeframe_id = p.timeframe_id
        ) as n
        full join (
            select c.student_id, c.timeframe_id, c.cohort_id, c.activity_average, c.assessment_average, c.average,
                   c.activity_count, c.assessment_count, c.feedback_count, c.assignment_count,
                   c.subjects, c.latest_assignment_id, c.latest_score, c.latest_comment, c.latest_given_at
            from reports.report_student_rollups as c
            where c.student_id = any (v_student_ids)
        ) as o on o.student_id = n.student_id and o.timeframe_id = n.timeframe_id
        where (n.student_id, n.cohort_id, n.activity_average, n.assessment_average, n.average, n.activity_count,
               n.assessment_count, n.feedback_count, n.assignment_count, n.subjects, n.latest_assignment_id,
               n.latest_score, n.latest_comment, n.latest_given_at)
              is distinct from
              (o.student_id, o.cohort_id, o.activity_average, o.assessment_average, o.average, o.activity_count,
               o.assessment_count, o.feedback_count, o.assignment_count, o.subjects, o.latest_assignment_id,
               o.latest_score, o.latest_comment, o.latest_given_at)
    ), pupil_removed as (
        delete from reports.report_student_rollups as c
        using pupil_change as d
        where d.is_stale and c.student_id = d.student_id and c.timeframe_id = d.timeframe_id
    ), pupil_written as (
        insert into reports.report_student_rollups as c (
            student_id, timeframe_id, cohort_id, activity_average, assessment_average, average,
            activity_count, assessment_count, feedback_count, assignment_count, subjects,
            latest_assignment_id, latest_score, latest_comment, latest_given_at, calculated_at
        )
        select d.student_id, d.timeframe_id, d.cohort_id, d.activity_average, d.assessment_average, d.average,
               d.activity_count, d.assessment_count, d.feedback_count, d.assignment_count, d.subjects,
               d.latest_assignment_id, d.latest_score, d.latest_comment, d.latest_given_at, clock_timestamp()
        from pupil_change as d
        where not d.is_stale
        on conflict (student_id, timeframe_id) do update set
            cohort_id = excluded.cohort_id, activity_average = excluded.activity_average,
            assessment_average = excluded.assessment_average, average = excluded.average,
            activity_count = excluded.activity_count, assessment_count = excluded.assessment_count,
            feedback_count = excluded.feedback_count, assignment_count = excluded.assignment_count,
            subjects = excluded.subjects, latest_assignment_id = excluded.latest_assignment_id,
            latest_score = excluded.latest_score, latest_comment = excluded.latest_comment,
            latest_given_at = excluded.latest_given_at, calculated_at = excluded.calculated_at
    )
    select array(
        select u.student_id::text from unit_change as u
        union
        select p.student_id::text from pupil_change as p
        order by 1
    ) into p_changed_keys;
end $$;
comment on procedure reports.recalculate_students is 'Recalculate both cached tables for pupils; returns those that changed.';
