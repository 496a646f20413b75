-- Wake a daemon, at commit; cost nothing when its workers are busy. Call it after the event row is inserted.
-- NOTIFY serialises all commits of the cluster, so it is only sent when a daemon holds the bell's lock, which it does
-- while it sleeps or has a worker to spare. Our shared hold keeps a daemon from falling asleep before our events are committed and visible.
--   Locks    advisory (29283, 1), shared, to the end of the transaction; never waits.
--   Needs    nothing: lock state is not MVCC, any isolation level will do. PREPARE TRANSACTION after a NOTIFY is
--            refused by Postgres: applications with two-phase commit run their daemons with RECALCD_WAKE=poll.
--   Falls    silent when the NOTIFY queue is half full, since somebody who listens sits in a transaction: once it is
--            full, every commit that notifies fails. The daemon's poll finds the event.
create or replace function outbox.ring(p_topic text default '') returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock_shared(29283, 1) and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('outbox', p_topic);
    end if;
end $$;
comment on function outbox.ring is 'Wake a daemon when this transaction commits. Needed only after inserting into outbox.event by hand.';
