-- How full the queue of notifications is (0 to 1), and how much vacuum has left to do on outbox.event.
select pg_notification_queue_usage() as notify_queue_usage,
       s.n_dead_tup as dead_rows, s.n_live_tup as live_rows, s.last_autovacuum as vacuumed_at,
       pg_table_size('outbox.event') + pg_indexes_size('outbox.event') as outbox_bytes
from pg_stat_user_tables as s
where s.relid = 'outbox.event'::regclass
