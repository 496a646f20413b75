-- The trace context of the writer, from its setting recalcd.traceparent.
--   Returns  null unless the setting holds a valid W3C traceparent: an ornament must not fail a write.
create or replace function outbox.traceparent() returns text
language sql stable  -- no search_path of its own, so that it can be inlined
as $$
    select t.traceparent
    from (select pg_catalog.current_setting('recalcd.traceparent', true)) as t (traceparent)
    where t.traceparent operator(pg_catalog.~) '^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$'
$$;
comment on function outbox.traceparent is 'The trace context of the writer, from its setting recalcd.traceparent; null unless it is valid.';
