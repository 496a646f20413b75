-- The books of `recalcd migrate`: which files this database holds. Run with the first migration, in its transaction;
-- dropped with the last. Running it again is harmless.

create schema if not exists outbox;
comment on schema outbox is 'recalcd: events that are pending, what became of them, and who works on them.';

create table if not exists outbox.migration (
    set_name   text        not null,
    version    integer     not null,
    name       text        not null,
    checksum   text        not null,
    applied_at timestamptz not null default clock_timestamp(),
    constraint migration_pkey primary key (set_name, version)
);
comment on table outbox.migration is 'A migration that this database holds. Written by recalcd migrate.';
comment on column outbox.migration.set_name is 'outbox, or reports.';
comment on column outbox.migration.version is 'Number of the file.';
comment on column outbox.migration.name is 'Name of the file, without number and ending.';
comment on column outbox.migration.checksum is 'SHA-256 of the up file as it was applied, in hexadecimal.';
comment on column outbox.migration.applied_at is 'When it was applied.';

create table if not exists outbox.routine (
    set_name   text        not null,
    file_name  text        not null,
    checksum   text        not null,
    signatures text[]      not null,
    applied_at timestamptz not null default clock_timestamp(),
    constraint routine_pkey primary key (set_name, file_name)
);
comment on table outbox.routine is 'A file of routines that this database holds. Written by recalcd migrate.';
comment on column outbox.routine.set_name is 'outbox, or reports.';
comment on column outbox.routine.file_name is 'Name of the file.';
comment on column outbox.routine.checksum is 'SHA-256 of the file as it was applied, in hexadecimal.';
comment on column outbox.routine.signatures is 'The routines that it made, with the types of their arguments: what drop routine takes.';
comment on column outbox.routine.applied_at is 'When it was applied.';
