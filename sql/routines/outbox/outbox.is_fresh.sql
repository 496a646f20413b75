-- Is the cached data of a key what a recalculation would produce now? Answers from the caller's own snapshot.
-- Plans as outbox.is_pending does, and is not put together from it, since a page asks once for every pupil.
--   Returns  false while an event of the key waits, or a failed recalculation of it is owed.
create or replace function outbox.is_fresh(p_topic text, p_key text) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off
as $$
    select (
        select true from outbox.event as e where e.topic = p_topic and e.key between p_key and p_key order by e.key limit 1
    ) is null
       and not exists (select from outbox.failure as f where f.topic = p_topic and f.key = p_key)
$$;
comment on function outbox.is_fresh is 'Is the cached data of a key up to date in this snapshot?';
