-- When did this server start? A crash of one backend does not change it, a restart or a failover does.
select pg_postmaster_start_time() as server_started_at
