-- Whether the history has a partition for this moment.
select to_regclass('outbox.batch_' || to_char(clock_timestamp() at time zone 'UTC', 'YYYYMMDD')) is not null as is_ready
