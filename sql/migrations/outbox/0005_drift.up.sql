-- Adds what verification knows: how to show a topic's cached rows, which keys have drifted, how far the daemons' audit is.
-- The new column changes no row, but its lock on outbox.topic waits for writers in flight, and new ones wait behind it.

alter table outbox.topic add column describe text;
comment on column outbox.topic.describe is 'Schema-qualified function (p_key text) returning jsonb: a key''s cached rows, without columns that say when, so that verify can tell what differs. Null when it can''t.';

create table outbox.drift (
    topic    text        not null,
    key      text        not null,
    found_at timestamptz not null default clock_timestamp(),
    constraint drift_pkey primary key (topic, key)
);
comment on table outbox.drift is 'Keys found drifted and not recalculated since. Hardly ever a row; each is a bug or a bypassed write.';
comment on column outbox.drift.topic is 'Which recalculation.';
comment on column outbox.drift.key is 'What is not as a recalculation would make it, though nothing is pending.';
comment on column outbox.drift.found_at is 'When that was first found.';

create table outbox.audit (
    topic                 text        not null,
    after_key             text,
    round_started_at      timestamptz,
    last_round_started_at timestamptz,
    constraint audit_pkey primary key (topic)
) with (fillfactor = 50);
comment on table outbox.audit is 'How far the daemons are that verify keys in the background, by topic: see RECALCD_VERIFY_KEYS_PER_MINUTE.';
comment on column outbox.audit.topic is 'Which recalculation.';
comment on column outbox.audit.after_key is 'The last key taken in this round; null between two rounds.';
comment on column outbox.audit.round_started_at is 'When this round began; null between two rounds.';
comment on column outbox.audit.last_round_started_at is 'When the last complete round began: every key that the topic lists was visited since. Null before the first is complete.';
