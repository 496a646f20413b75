-- Adds a school: the source tables of the reports. Locks nothing that exists; safe while writers run.
-- Write through the functions school.*: each enqueues the pupils that it affects. Whoever writes these tables directly
-- calls outbox.enqueue('reports.student', …) in the same transaction.

create schema school;
comment on schema school is 'The source of the reports: who is taught, what is set, what was thought of it.';

create table school.cohort (
    cohort_id uuid not null default gen_random_uuid(),
    name      text not null,
    constraint cohort_pkey primary key (cohort_id),
    constraint cohort_name_length_check check (length(name) between 1 and 200)
);
comment on table school.cohort is 'Pupils who started together.';
comment on column school.cohort.cohort_id is 'Made here, or by the application.';
comment on column school.cohort.name is 'For people. Not unique.';

create table school.student (
    student_id uuid not null default gen_random_uuid(),
    cohort_id  uuid not null,
    name       text not null,
    constraint student_pkey primary key (student_id),
    constraint student_cohort_fkey foreign key (cohort_id) references school.cohort,
    constraint student_name_length_check check (length(name) between 1 and 200)
);
create index student_cohort_idx on school.student (cohort_id);
comment on table school.student is 'A pupil. The key of the topic reports.student is the id as text.';
comment on column school.student.student_id is 'Made here, or by the application.';
comment on column school.student.cohort_id is 'Exactly one; see school.move_cohort.';
comment on column school.student.name is 'Personal: never in an event, a log or an error message.';
comment on index school.student_cohort_idx is 'Serves the foreign key: does anybody still belong to this cohort?';

create table school.class_group (
    group_id uuid not null default gen_random_uuid(),
    name     text not null,
    constraint class_group_pkey primary key (group_id),
    constraint class_group_name_length_check check (length(name) between 1 and 200)
);
comment on table school.class_group is
    'Pupils who are taught together. Its row is what the writers lock when they change who is in it, or what is set for it.';
comment on column school.class_group.group_id is 'Made here, or by the application.';
comment on column school.class_group.name is 'For people. Not unique.';

create table school.group_membership (
    student_id uuid        not null,
    group_id   uuid        not null,
    joined_at  timestamptz not null default clock_timestamp(),
    constraint group_membership_pkey primary key (student_id, group_id),
    constraint group_membership_student_fkey foreign key (student_id) references school.student,
    constraint group_membership_group_fkey foreign key (group_id) references school.class_group
);
create index group_membership_group_idx on school.group_membership (group_id, student_id);
comment on table school.group_membership is 'Who is in which group now. A pupil may be in many.';
comment on column school.group_membership.student_id is 'The pupil.';
comment on column school.group_membership.group_id is 'The group.';
comment on column school.group_membership.joined_at is 'For people; nothing is computed from it.';
comment on index school.group_membership_group_idx is 'Serves: who is in this group? Asked by every write that changes what is set for it.';

create table school.timeframe (
    timeframe_id uuid not null default gen_random_uuid(),
    name         text not null,
    starts_on    date not null,
    ends_on      date not null,
    constraint timeframe_pkey primary key (timeframe_id),
    constraint timeframe_name_length_check check (length(name) between 1 and 200),
    constraint timeframe_days_check check (starts_on <= ends_on)
);
comment on table school.timeframe is
    'A stretch of days that reports are made for: a term, a year, or all. It holds the assignments that are dated within it; timeframes may overlap.';
comment on column school.timeframe.timeframe_id is 'Made here, or by the application. The nil uuid is the timeframe `all`.';
comment on column school.timeframe.name is 'For people. Not unique.';
comment on column school.timeframe.starts_on is 'First day; -infinity for open.';
comment on column school.timeframe.ends_on is 'Last day, included; infinity for open.';

-- Always there, and under an id that everybody knows: a report that names no timeframe is the report of everything.
insert into school.timeframe (timeframe_id, name, starts_on, ends_on)
values ('00000000-0000-0000-0000-000000000000', 'all', '-infinity', 'infinity');

create table school.unit (
    unit_id uuid not null default gen_random_uuid(),
    subject text not null,
    title   text not null,
    constraint unit_pkey primary key (unit_id),
    constraint unit_subject_length_check check (length(subject) between 1 and 200),
    constraint unit_title_length_check check (length(title) between 1 and 200)
);
comment on table school.unit is 'A piece of a subject: Mathematics, Fractions.';
comment on column school.unit.unit_id is 'Made here, or by the application.';
comment on column school.unit.subject is 'Units with the same text are of the same subject.';
comment on column school.unit.title is 'For people. Not unique.';

create table school.assignment (
    assignment_id uuid    not null default gen_random_uuid(),
    group_id      uuid    not null,
    unit_id       uuid    not null,
    level         integer not null,
    kind          text    not null,
    assigned_on   date    not null,
    constraint assignment_pkey primary key (assignment_id),
    constraint assignment_group_fkey foreign key (group_id) references school.class_group,
    constraint assignment_unit_fkey foreign key (unit_id) references school.unit,
    constraint assignment_level_check check (level between 1 and 99),
    constraint assignment_kind_check check (kind in ('activity', 'assessment')),
    constraint assignment_assigned_on_check check (isfinite(assigned_on))
);
create index assignment_group_idx on school.assignment (group_id);
create index assignment_unit_idx on school.assignment (unit_id);
comment on table school.assignment is 'A piece of work set for a group.';
comment on column school.assignment.assignment_id is 'Made here, or by the application.';
comment on column school.assignment.group_id is 'Whose members are to do it.';
comment on column school.assignment.unit_id is 'What it is about.';
comment on column school.assignment.level is 'How demanding: 1 is the lowest.';
comment on column school.assignment.kind is 'activity: practice. assessment: a test.';
comment on column school.assignment.assigned_on is 'Puts it, and all feedback on it, into the timeframes that hold this day.';
comment on index school.assignment_group_idx is 'Serves the recalculation and the group''s grid: what is set for this group?';
comment on index school.assignment_unit_idx is 'Serves editing and deleting a unit: what is set from it?';

-- The primary key leads with the pupil, since the recalculation reads all feedback of a pupil.
create table school.feedback (
    student_id    uuid          not null,
    assignment_id uuid          not null,
    score         numeric(5, 4) not null,
    comment       text,
    given_by      uuid,
    given_at      timestamptz   not null default clock_timestamp(),
    constraint feedback_pkey primary key (student_id, assignment_id),
    constraint feedback_student_fkey foreign key (student_id) references school.student,
    constraint feedback_assignment_fkey foreign key (assignment_id) references school.assignment,
    constraint feedback_score_check check (score between 0 and 1),
    constraint feedback_comment_length_check check (length(comment) <= 10000)
);
create index feedback_assignment_idx on school.feedback (assignment_id);
comment on table school.feedback is
    'What a teacher thought of a pupil''s work on an assignment. It stays the pupil''s own when the pupil leaves the group.';
comment on column school.feedback.student_id is 'Whose work.';
comment on column school.feedback.assignment_id is 'Which work.';
comment on column school.feedback.score is '0 to 1, four decimals.';
comment on column school.feedback.comment is 'Personal: never in an event, a log or an error message.';
comment on column school.feedback.given_by is 'The teacher, as the application knows teachers.';
comment on column school.feedback.given_at is 'When it was given or last changed. The greatest is the latest feedback.';
comment on index school.feedback_assignment_idx is 'Serves: who has feedback on this assignment? Asked by every write that changes it.';
