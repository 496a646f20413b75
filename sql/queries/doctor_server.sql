-- What the server and the role are like, as far as recalcd depends on it.
select current_setting('server_version_num')::integer as version_num,
       current_setting('server_version') as version,
       pg_is_in_recovery() as is_standby,
       current_user::text as role,
       (select r.rolsuper from pg_roles as r where r.rolname = current_user) as is_superuser,
       pg_has_role(current_user, 'pg_read_all_stats', 'usage') as sees_all_sessions,
       current_setting('max_locks_per_transaction')::bigint
           * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) as lock_slots,
       current_setting('max_locks_per_transaction')::integer as max_locks_per_transaction,
       current_setting('autovacuum')::boolean as autovacuum,
       current_setting('track_counts')::boolean as track_counts,
       exists (select from pg_extension as e where e.extname = 'pg_stat_statements') as has_statement_statistics,
       extract(epoch from clock_timestamp())::double precision as now_s
