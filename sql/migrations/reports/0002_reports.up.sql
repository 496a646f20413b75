-- Adds the cached reports and their topic. Locks nothing that exists; safe while writers run.
-- No foreign keys to the source: these are derived rows, and a foreign key's check would lock what writers hold.
-- A fillfactor below 100, since rows are updated in place and no indexed column changes then.

create schema reports;
comment on schema reports is 'Reports, cached: tables that recalcd keeps true, and the functions that read them.';

create table reports.report_student_rollups (
    student_id           uuid          not null,
    timeframe_id         uuid          not null,
    cohort_id            uuid          not null,
    activity_average     numeric(5, 4),
    assessment_average   numeric(5, 4),
    average              numeric(5, 4),
    activity_count       integer       not null,
    assessment_count     integer       not null,
    feedback_count       integer       not null,
    assignment_count     integer       not null,
    subjects             jsonb         not null,
    latest_assignment_id uuid,
    latest_score         numeric(5, 4),
    latest_comment       text,
    latest_given_at      timestamptz,
    calculated_at        timestamptz   not null,
    constraint report_student_rollups_pkey primary key (student_id, timeframe_id)
) with (fillfactor = 85);
create index report_student_rollups_cohort_idx on reports.report_student_rollups (cohort_id, timeframe_id);
comment on table reports.report_student_rollups is
    'Cached: what the school knows of a pupil in a timeframe. One row for every pupil and timeframe, once calculated.';
comment on column reports.report_student_rollups.student_id is 'The pupil; as text, the key of the topic.';
comment on column reports.report_student_rollups.timeframe_id is 'The timeframe; the nil uuid for all.';
comment on column reports.report_student_rollups.cohort_id is 'The pupil''s cohort.';
comment on column reports.report_student_rollups.activity_average is 'Mean score of feedback on activities; null without any.';
comment on column reports.report_student_rollups.assessment_average is 'Mean score of feedback on assessments; null without any.';
comment on column reports.report_student_rollups.average is 'Mean score of all feedback; null without any.';
comment on column reports.report_student_rollups.activity_count is 'Pieces of feedback on activities.';
comment on column reports.report_student_rollups.assessment_count is 'Pieces of feedback on assessments.';
comment on column reports.report_student_rollups.feedback_count is 'Pieces of feedback.';
comment on column reports.report_student_rollups.assignment_count is 'Assignments set for the pupil''s groups.';
comment on column reports.report_student_rollups.subjects is
    'By subject: {"Mathematics": {"average": 0.71, "unit_count": 5, "feedback_count": 12, "assignment_count": 15, "working_level": 3}}.';
comment on column reports.report_student_rollups.latest_assignment_id is 'What the latest feedback was given on.';
comment on column reports.report_student_rollups.latest_score is 'Score of the latest feedback.';
comment on column reports.report_student_rollups.latest_comment is 'Comment of the latest feedback. Personal.';
comment on column reports.report_student_rollups.latest_given_at is 'When the latest feedback was given.';
comment on column reports.report_student_rollups.calculated_at is 'When a recalculation last changed this row; one that finds it right leaves it alone.';
comment on index reports.report_student_rollups_cohort_idx is 'Serves reports.cohort_report.';

create table reports.report_student_unit_rollups (
    student_id         uuid          not null,
    timeframe_id       uuid          not null,
    unit_id            uuid          not null,
    activity_average   numeric(5, 4),
    assessment_average numeric(5, 4),
    average            numeric(5, 4),
    activity_count     integer       not null,
    assessment_count   integer       not null,
    feedback_count     integer       not null,
    assignment_count   integer       not null,
    working_level      integer,
    latest_given_at    timestamptz,
    calculated_at      timestamptz   not null,
    constraint report_student_unit_rollups_pkey primary key (student_id, timeframe_id, unit_id)
) with (fillfactor = 85);
create index report_student_unit_rollups_unit_idx on reports.report_student_unit_rollups (unit_id, timeframe_id);
comment on table reports.report_student_unit_rollups is
    'Cached: what the school knows of a pupil in a unit and a timeframe. A row when the unit has an assignment for one of the pupil''s groups, or feedback for the pupil.';
comment on column reports.report_student_unit_rollups.student_id is 'The pupil; as text, the key of the topic.';
comment on column reports.report_student_unit_rollups.timeframe_id is 'The timeframe; the nil uuid for all.';
comment on column reports.report_student_unit_rollups.unit_id is 'The unit.';
comment on column reports.report_student_unit_rollups.activity_average is 'Mean score of feedback on activities; null without any.';
comment on column reports.report_student_unit_rollups.assessment_average is 'Mean score of feedback on assessments; null without any.';
comment on column reports.report_student_unit_rollups.average is 'Mean score of all feedback; null without any.';
comment on column reports.report_student_unit_rollups.activity_count is 'Pieces of feedback on activities.';
comment on column reports.report_student_unit_rollups.assessment_count is 'Pieces of feedback on assessments.';
comment on column reports.report_student_unit_rollups.feedback_count is 'Pieces of feedback.';
comment on column reports.report_student_unit_rollups.assignment_count is 'Assignments set for the pupil''s groups.';
comment on column reports.report_student_unit_rollups.working_level is 'The highest level mastered: see reports.standings. Null when none is.';
comment on column reports.report_student_unit_rollups.latest_given_at is 'When the latest feedback was given.';
comment on column reports.report_student_unit_rollups.calculated_at is 'When a recalculation last changed this row; one that finds it right leaves it alone.';
comment on index reports.report_student_unit_rollups_unit_idx is 'Serves an application''s question: how does everybody do in this unit and timeframe?';

-- Not through outbox.set_topic, which checks that the routines exist: they come right after the migrations.
insert into outbox.topic (topic, recalculate, list_keys)
values ('reports.student', 'reports.recalculate_students', 'reports.list_students')
on conflict (topic) do nothing;
