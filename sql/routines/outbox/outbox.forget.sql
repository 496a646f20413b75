-- Forget keys whose source was deleted: recalculate them, so that their cached rows go, and erase them everywhere else.
-- All of it or nothing. No search_path of its own, as in outbox.recalculate; what it writes is in routines that have one.
--   Locks    the keys (outbox.lock_keys, waits), so that nobody is at work on them; then as outbox.erase_keys.
--   Needs    read committed.
--   Takes    p_keys: distinct, at most a thousand or so: each holds a lock.
--   Returns  event_count, changed_count: events taken; keys of which a cached row went (null when the routine does not
--            say). note_count: failures, suspicions, notes of drift. is_certain: whether the topic could tell that the
--            source is gone; it takes a function that lists keys, or one that describes them. The others: outbox.erase_keys.
--   Errors   RC002 unknown topic.   RC016 a key still has a source, or cached rows.   RC017 a job stands at a key.
--            RC001, RC003 as outbox.lock_keys.   And those of the topic's routines.
create or replace function outbox.forget(
    p_topic text, p_keys text[],
    out event_count bigint, out changed_count bigint, out note_count bigint, out job_count bigint,
    out batch_count bigint, out is_certain boolean
)
language plpgsql volatile
as $$
declare
    v_changed text[];
    v_left text;
begin
    perform outbox.lock_keys(p_topic, p_keys);
    select f.event_count, f.note_count into event_count, note_count from outbox.take_owed(p_topic, p_keys) as f;
    v_changed := outbox.recalculate(p_topic, p_keys);
    changed_count := pg_catalog.cardinality(v_changed);
    perform outbox.settle(p_topic, p_keys, v_changed, 0, null, '{}', pg_catalog.clock_timestamp(), 0, null, 'repair', false);
    select f.key, f.is_certain into v_left, is_certain from outbox.find_left(p_topic, p_keys) as f;
    if v_left is not null then
        raise exception 'key % of topic % still has a source, or cached rows', pg_catalog.quote_literal(v_left), p_topic
            using errcode = 'RC016', hint = 'Delete the source first: its next recalculation would bring everything back.';
    end if;
    select e.job_count, e.batch_count into job_count, batch_count from outbox.erase_keys(p_topic, p_keys) as e;
end $$;
comment on function outbox.forget is 'Forget keys whose source was deleted: cached rows, failures, history and all.';
