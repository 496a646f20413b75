-- How many rows this transaction has written so far, temporary tables left aside.
select coalesce(sum(s.n_tup_ins + s.n_tup_upd + s.n_tup_del), 0)::bigint as row_count
from pg_stat_xact_user_tables as s
where s.schemaname not like 'pg\_temp%'
