-- Is the cached data of a key what a recalculation would produce now? Answers from the caller's own snapshot.
--   Returns  false while an event of the key waits, or a failed recalculation of it is owed.
create or replace function outbox.is_fresh(p_topic text, p_key text) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select not exists (select from outbox.event as e where e.topic = p_topic and e.key = p_key)
       and not exists (select from outbox.failure as f where f.topic = p_topic and f.key = p_key)
$$;
comment on function outbox.is_fresh is 'Is the cached data of a key up to date in this snapshot?';
