-- Drop the history's old partitions.
--   $1 days to keep
select outbox.drop_partitions($1::integer) as dropped
