-- Make the history's partitions ahead.
--   $1 days
select outbox.make_partitions($1::integer) as made
