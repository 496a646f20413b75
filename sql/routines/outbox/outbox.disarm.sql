-- Tell writers that they need not ring: the workers are busy, and look by themselves. The counterpart of outbox.arm, on the same session.
--   Returns  whether the session was armed.
create or replace function outbox.disarm() returns boolean
language sql volatile set search_path = pg_catalog, pg_temp
as $$ select pg_advisory_unlock(29283, 1) $$;
comment on function outbox.disarm is 'Tell writers that they need not ring: the daemon looks by itself.';
