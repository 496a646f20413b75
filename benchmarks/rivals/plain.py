"""What needs no queue: recalculating inside the writer's transaction, or everything again and again."""

import sys

from benchmarks.rivals.system import ALL, NOTHING_WAITS, REPORT, System

REFRESH_APART_S = 0
"""Each refresh begins when the one before has ended."""
RECOMPUTE_APART_S = 5

IN_THE_TRANSACTION = System(
    name="synchronous",
    enqueue="call reports.recalculate_students(array[p_key], v_changed_keys);",
    enqueue_all=f"call reports.recalculate_students(array(select b.key from {ALL}), null)",
    left=NOTHING_WAITS,
)
"""The report is true when the writer's commit returns, and the writer waits for it."""

# The pupils whose report was not written since their feedback was: who recomputes everything knows no more than that.
STALE = """
from bench.dirty as d
join bench.work as w on w.student_id = d.student_id
join school.feedback as f on f.assignment_id = w.assignment_id and f.student_id = w.student_id
where not exists (
    select from {report} as r
    where r.student_id = d.student_id and pg_xact_commit_timestamp(r.xmin) > pg_xact_commit_timestamp(f.xmin)
)
"""

# The rows of both report tables, by the words of reports.recalculate_students; a refresh writes those that differ.
VIEWS = """
create materialized view bench.report_student_unit_rollups as
select s.student_id, s.timeframe_id, s.unit_id,
       reports.average(s.feedback_points - s.assessment_points, s.feedback_count - s.assessment_count)
           as activity_average,
       reports.average(s.assessment_points, s.assessment_count) as assessment_average,
       reports.average(s.feedback_points, s.feedback_count) as average,
       s.feedback_count - s.assessment_count as activity_count, s.assessment_count, s.feedback_count,
       s.assignment_count, s.working_level, s.latest_given_at
from reports.standings(array(select p.student_id from school.student as p)) as s
where s.unit_id is not null;

create materialized view bench.report_student_rollups as
with pupil as (
    select s.student_id, s.timeframe_id,
           max(s.feedback_points - s.assessment_points) filter (where s.subject is null) as activity_points,
           max(s.assessment_points) filter (where s.subject is null) as assessment_points,
           max(s.feedback_points) filter (where s.subject is null) as feedback_points,
           max(s.assessment_count) filter (where s.subject is null) as assessment_count,
           max(s.feedback_count) filter (where s.subject is null) as feedback_count,
           max(s.assignment_count) filter (where s.subject is null) as assignment_count,
           max(s.latest_given_at) as latest_given_at,
           jsonb_object_agg(s.subject, jsonb_build_object(
               'average', reports.average(s.feedback_points, s.feedback_count), 'unit_count', s.unit_count,
               'feedback_count', s.feedback_count, 'assignment_count', s.assignment_count,
               'working_level', s.working_level
           )) filter (where s.subject is not null) as subjects
    from reports.standings(array(select p.student_id from school.student as p)) as s
    where s.unit_id is null
    group by s.student_id, s.timeframe_id
)
select b.student_id, t.timeframe_id, b.cohort_id,
       reports.average(p.activity_points, p.feedback_count - p.assessment_count) as activity_average,
       reports.average(p.assessment_points, p.assessment_count) as assessment_average,
       reports.average(p.feedback_points, p.feedback_count) as average,
       coalesce(p.feedback_count - p.assessment_count, 0) as activity_count,
       coalesce(p.assessment_count, 0) as assessment_count, coalesce(p.feedback_count, 0) as feedback_count,
       coalesce(p.assignment_count, 0) as assignment_count, coalesce(p.subjects, '{}') as subjects,
       l.assignment_id as latest_assignment_id, l.score as latest_score, l.comment as latest_comment,
       p.latest_given_at
from school.student as b
cross join school.timeframe as t
left join pupil as p on p.student_id = b.student_id and p.timeframe_id = t.timeframe_id
left join lateral (
    select f.assignment_id, f.score, f.comment
    from (
        select f.assignment_id, f.score, f.comment
        from school.feedback as f
        where f.student_id = p.student_id and f.given_at = p.latest_given_at
        offset 0
    ) as f
    join school.assignment as a on a.assignment_id = f.assignment_id
    where a.assigned_on between t.starts_on and t.ends_on
    order by f.assignment_id desc
    limit 1
) as l on true;

create unique index on bench.report_student_unit_rollups (student_id, timeframe_id, unit_id);
create unique index on bench.report_student_rollups (student_id, timeframe_id);
"""

# One transaction, and each view of the moment its own statement began: read committed takes two snapshots.
REFRESH = """
refresh materialized view concurrently bench.report_student_unit_rollups;
refresh materialized view concurrently bench.report_student_rollups;
"""
RECOMPUTE = "call reports.backfill_student_rollups()"


def _again_and_again(name: str, sql: str, apart_s: float, *, schema: str = "", views: tuple[str, ...] = ()) -> System:
    report = views[-1] if views else REPORT
    return System(
        name=name,
        enqueue="null;",
        enqueue_all="select",
        left=STALE.format(report=report),
        schema=schema,
        worker=(sys.executable, "again.py", str(apart_s), sql),
        report=report,
        views=views,
        calls_each=False,
    )


MATERIALIZED_VIEW = _again_and_again(
    "materialized view",
    REFRESH,
    REFRESH_APART_S,
    schema=VIEWS,
    views=("bench.report_student_unit_rollups", "bench.report_student_rollups"),
)
RECOMPUTE_ALL = _again_and_again(f"all again every {RECOMPUTE_APART_S} s", RECOMPUTE, RECOMPUTE_APART_S)
