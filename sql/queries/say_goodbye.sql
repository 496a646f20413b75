-- Say that this daemon stopped as it should.
--   $1 daemon
update outbox.daemon as d
set state = 'stopped', seen_at = clock_timestamp(), ended_at = clock_timestamp()
where d.daemon_id = $1::uuid
