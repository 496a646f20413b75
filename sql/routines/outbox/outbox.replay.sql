-- Put keys back, to be recalculated as if they had changed; behind what is pending already. Failing and dead keys start
-- again with all their attempts.
--   Takes    p_keys: distinct.
--   Errors   RC002, RC003 as outbox.enqueue.
create or replace function outbox.replay(p_topic text, p_keys text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    update outbox.failure as f
    set state = 'retrying', attempts = 0, next_attempt_at = clock_timestamp()
    where f.topic = p_topic and f.key = any (p_keys);
    perform outbox.enqueue(p_topic, p_keys, 'replay');
end $$;
comment on function outbox.replay is 'Put keys back, to be recalculated as if they had changed.';
