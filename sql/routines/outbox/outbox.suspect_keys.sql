-- Note the keys of a batch that vanished, or (by a daemon that has reason to be careful) of one that is about to be
-- called, in a transaction of its own: what is counted survives the crash, and outbox.settle clears the innocent.
--   Takes    p_keys: the distinct keys of the batch.
create or replace function outbox.suspect_keys(p_topic text, p_keys text[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    insert into outbox.suspect as s (topic, key, crash_count)
    select p_topic, k.key, 1 from unnest(p_keys) as k (key) order by k.key
    on conflict (topic, key) do update set
        crash_count = s.crash_count + 1, last_crashed_at = clock_timestamp(), was_alone = cardinality(p_keys) = 1
$$;
comment on function outbox.suspect_keys is 'Note the keys of a batch that vanished.';
