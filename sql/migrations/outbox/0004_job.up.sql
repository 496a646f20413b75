-- Adds long operations that survive their process: backfill and replay. Locks nothing that exists.

create table outbox.job (
    job_id        integer     generated always as identity,
    kind          text        not null,
    topic         text        not null,
    part          jsonb       not null default '{}',
    is_named      boolean     not null default false,
    state         text        not null default 'running',
    cursor        text,
    key_count     bigint      not null,
    done_count    bigint      not null default 0,
    changed_count bigint      not null default 0,
    skipped_count bigint      not null default 0,
    failed_count  bigint      not null default 0,
    chunk_keys    integer     not null,
    rate_limit    real,
    keys_per_s    real,
    error         text,
    created_at    timestamptz not null default clock_timestamp(),
    advanced_at   timestamptz,
    ended_at      timestamptz,
    constraint job_pkey primary key (job_id),
    constraint job_kind_check check (kind in ('backfill', 'replay')),
    constraint job_part_check check (jsonb_typeof(part) = 'object'),
    constraint job_state_check check (state in ('running', 'paused', 'finished', 'cancelled')),
    constraint job_ended_check check ((ended_at is not null) = (state in ('finished', 'cancelled'))),
    constraint job_chunk_keys_check check (chunk_keys between 1 and 1000),
    constraint job_rate_limit_check check (rate_limit > 0)
) with (fillfactor = 50);
comment on table outbox.job is
    'A backfill or a replay. Done in chunks, by a process that holds the advisory lock (29284, job_id) meanwhile; another one can go on with it.';
comment on column outbox.job.job_id is 'Its number.';
comment on column outbox.job.kind is 'backfill: recalculates. replay: puts keys back into the outbox.';
comment on column outbox.job.topic is 'Whose keys.';
comment on column outbox.job.part is 'Which of them, as the topic''s list_keys function understands it: {"cohort": "…", "missing": true}; {} for all.';
comment on column outbox.job.is_named is 'Whether the keys are in outbox.job_key, instead of being listed by the topic.';
comment on column outbox.job.state is 'running: also of a job whose process is gone. paused: until somebody resumes it. finished, cancelled: for good.';
comment on column outbox.job.cursor is 'The last key of the last chunk; set in the transaction of the chunk, so that no chunk is done twice. Null at the start.';
comment on column outbox.job.key_count is 'Keys there were when it was created.';
comment on column outbox.job.done_count is 'Keys up to the cursor, whatever became of them.';
comment on column outbox.job.changed_count is 'Those of them whose cached rows changed.';
comment on column outbox.job.skipped_count is 'Those of them that were left to the daemon: an event of theirs waits, or a failure owes them a retry.';
comment on column outbox.job.failed_count is 'Those of them whose recalculation failed; see outbox.failure.';
comment on column outbox.job.chunk_keys is 'Keys of the next chunk, by what the last ones took.';
comment on column outbox.job.rate_limit is 'Most keys a second; null for no limit.';
comment on column outbox.job.keys_per_s is 'Keys a second, lately, waiting included.';
comment on column outbox.job.error is 'Why the process that ran it gave up; null when it did not say.';
comment on column outbox.job.created_at is 'When it was created.';
comment on column outbox.job.advanced_at is 'When its last chunk was committed.';
comment on column outbox.job.ended_at is 'When it was finished or cancelled.';

create table outbox.job_key (
    job_id integer          not null,
    key    text collate "C" not null,
    constraint job_key_pkey primary key (job_id, key),
    constraint job_key_job_fkey foreign key (job_id) references outbox.job on delete cascade,
    constraint job_key_key_length_check check (length(key) between 1 and 255)
);
comment on table outbox.job_key is 'The keys of a job that were named, until it ends.';
comment on column outbox.job_key.job_id is 'The job.';
comment on column outbox.job_key.key is 'One of its keys; they are done in the order of their bytes.';
