-- Does an event of the key wait, in the caller's snapshot?
-- In order of the key and without sorting: one index alone can do that. While a forgotten transaction keeps dead events in
-- the table, the planner believes it to be empty, and the primary key to do as well: with 1,000,000 of them 76 ms a key.
create or replace function outbox.is_pending(p_topic text, p_key text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off
as $$
    select (
        select true from outbox.event as e where e.topic = p_topic and e.key between p_key and p_key order by e.key limit 1
    ) is not null
$$;
comment on function outbox.is_pending is 'Does an event of the key wait?';
