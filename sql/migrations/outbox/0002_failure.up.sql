-- Adds what is owed when a recalculation fails, and who is suspected when one vanishes. Locks nothing that exists.

create table outbox.failure (
    topic           text        not null,
    key             text        not null,
    state           text        not null default 'retrying',
    attempts        integer     not null default 0,
    event_count     bigint      not null default 0,
    first_failed_at timestamptz not null default clock_timestamp(),
    last_failed_at  timestamptz not null default clock_timestamp(),
    next_attempt_at timestamptz not null,
    sqlstate        text,
    message         text,
    detail          text,
    hint            text,
    context         text,
    constraint failure_pkey primary key (topic, key),
    constraint failure_state_check check (state in ('retrying', 'dead')),
    constraint failure_attempts_check check (attempts >= 0),
    constraint failure_event_count_check check (event_count >= 0)
);
create index failure_due_idx on outbox.failure (topic, next_attempt_at) where state = 'retrying';
comment on table outbox.failure is 'A key whose recalculation failed, and which is therefore owed one. One row a key, however many events it swallowed.';
comment on column outbox.failure.topic is 'Which recalculation.';
comment on column outbox.failure.key is 'What is not up to date.';
comment on column outbox.failure.state is 'retrying: tried again at next_attempt_at. dead: waits for an operator, or for a new event.';
comment on column outbox.failure.attempts is 'Failed recalculations charged to the key since it last succeeded.';
comment on column outbox.failure.event_count is 'Events folded into this row since the key last succeeded.';
comment on column outbox.failure.first_failed_at is 'When the key first failed since it last succeeded.';
comment on column outbox.failure.last_failed_at is 'When the key last failed.';
comment on column outbox.failure.next_attempt_at is 'When the key is tried again; of a dead key, the earliest try that a new event can earn.';
comment on column outbox.failure.sqlstate is 'SQLSTATE of the last failure.';
comment on column outbox.failure.message is 'Primary message of the last failure.';
comment on column outbox.failure.detail is 'Detail of the last failure. May hold row values: for operators only.';
comment on column outbox.failure.hint is 'Hint of the last failure.';
comment on column outbox.failure.context is 'Call stack of the last failure inside the database.';
comment on index outbox.failure_due_idx is 'Serves the claim: failures that fall due, oldest first.';

create table outbox.suspect (
    topic           text        not null,
    key             text        not null,
    crash_count     integer     not null default 0,
    was_alone       boolean     not null default false,
    last_crashed_at timestamptz not null default clock_timestamp(),
    constraint suspect_pkey primary key (topic, key),
    constraint suspect_crash_count_check check (crash_count >= 0)
);
comment on table outbox.suspect is 'A key of a batch that vanished with its backend or its daemon. Tried again in ever smaller company, until only the culprit is left.';
comment on column outbox.suspect.topic is 'Which recalculation.';
comment on column outbox.suspect.key is 'Who was there.';
comment on column outbox.suspect.crash_count is 'How many batches vanished with the key in them since it last succeeded.';
comment on column outbox.suspect.was_alone is 'Whether it was suspected before, and alone the last time: its own doing, to be charged by the next claim.';
comment on column outbox.suspect.last_crashed_at is 'When the last of them was noticed.';
