-- Adds the outbox and the topics it serves. Locks nothing that exists; safe while writers run.

create table outbox.topic (
    topic               text        not null,
    recalculate         text        not null,
    list_keys           text,
    max_attempts        integer     not null default 8,
    retry_base_s        integer     not null default 5,
    retry_max_s         integer     not null default 3600,
    batch_keys          integer     not null default 500,
    statement_timeout_s integer     not null default 30,
    paused_at           timestamptz,
    paused_reason       text,
    constraint topic_pkey primary key (topic),
    constraint topic_topic_length_check check (length(topic) between 1 and 100),
    constraint topic_max_attempts_check check (max_attempts between 1 and 100),
    constraint topic_retry_base_s_check check (retry_base_s between 1 and 86400),
    constraint topic_retry_max_s_check check (retry_max_s between retry_base_s and 604800),
    constraint topic_batch_keys_check check (batch_keys between 1 and 1000),
    constraint topic_statement_timeout_s_check check (statement_timeout_s between 1 and 86400)
);
comment on table outbox.topic is 'A kind of derived data and the routine that recalculates it. Write through outbox.set_topic, which checks.';
comment on column outbox.topic.topic is 'Name of the kind: reports.student.';
comment on column outbox.topic.recalculate is 'Schema-qualified procedure or function that recalculates keys of the topic.';
comment on column outbox.topic.list_keys is 'Schema-qualified function (p_after text, p_limit integer) returning setof text that pages through all keys; null when the topic can''t list them.';
comment on column outbox.topic.max_attempts is 'Failed recalculations of a key before it is dead.';
comment on column outbox.topic.retry_base_s is 'Wait after the first failure, in seconds; it doubles with every further one.';
comment on column outbox.topic.retry_max_s is 'Longest wait between attempts, in seconds; also the shortest time between two tries that new events earn a dead key.';
comment on column outbox.topic.batch_keys is 'Most keys of one batch. Each holds one advisory lock, and the lock table is shared by the whole server: hence at most 1,000.';
comment on column outbox.topic.statement_timeout_s is 'Longest recalculation of one batch, in seconds.';
comment on column outbox.topic.paused_at is 'When an operator paused the topic; null while it runs. Events wait.';
comment on column outbox.topic.paused_reason is 'Why it was paused, for the next operator.';

-- Append-only for writers: no unique key, no upsert, no foreign key, so that producers never wait for each other.
-- The primary key leads with the topic, so that one topic's backlog is no obstacle in another topic's look.
create table outbox.event (
    event_id    bigint      generated always as identity,
    topic       text        not null,
    key         text        not null,
    enqueued_at timestamptz not null default clock_timestamp(),
    reason      text,
    traceparent text,
    constraint event_pkey primary key (topic, event_id),
    constraint event_key_length_check check (length(key) between 1 and 255),
    constraint event_reason_length_check check (length(reason) <= 200),
    constraint event_traceparent_length_check check (length(traceparent) <= 200)
) with (
    -- Every row dies within moments: vacuum by a fixed number of dead rows, at full speed, and don't let ANALYZE
    -- catch the table empty and talk the planner into scanning it whole.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000
);
create index event_topic_key_idx on outbox.event (topic, key, event_id);
comment on table outbox.event is 'One change. Inserted with the change, deleted with its recalculation.';
comment on column outbox.event.event_id is 'Order of insertion, not of commit; gaps are normal.';
comment on column outbox.event.topic is 'Which recalculation. No foreign key: writers must not share a lock.';
comment on column outbox.event.key is 'What to recalculate. Events of one (topic, key) are done together.';
comment on column outbox.event.enqueued_at is 'When the row was written; its transaction commits later.';
comment on column outbox.event.reason is 'Why, in the writer''s words: feedback.recorded. No personal data.';
comment on column outbox.event.traceparent is 'W3C trace context of the writer, from the setting recalcd.traceparent.';
comment on index outbox.event_topic_key_idx is 'Serves taking all events of claimed keys, and is_fresh.';
