-- Ask writers to ring from now on, because this session is about to sleep. Called by a daemon on its LISTEN session,
-- so that losing the session loses both; look once more afterwards, then sleep.
--   Locks    advisory (29283, 1), exclusive, held by the session; never waits, since a waiting statement pins the horizon.
--   Returns  armed: writers ring.  guarded: another daemon is armed, and what wakes it wakes us.
--            busy: silent writers are in flight; look again in a few milliseconds.
create or replace function outbox.arm() returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_try_advisory_lock(29283, 1) then
        return 'armed';
    end if;
    if exists (
        select from pg_locks as l
        where l.locktype = 'advisory' and l.classid = 29283 and l.objid = 1 and l.objsubid = 2
          and l.mode = 'ExclusiveLock' and l.granted
          and l.database = (select d.oid from pg_database as d where d.datname = current_database())
    ) then
        return 'guarded';
    end if;
    return 'busy';
end $$;
comment on function outbox.arm is 'Ask writers to ring, because this session is about to sleep: armed, guarded or busy.';
