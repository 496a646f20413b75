-- The advisory lock of a key. Keys whose hashes collide share a lock: they only wait for each other.
create or replace function outbox.key_lock_id(p_topic text, p_key text) returns bigint
language sql immutable strict parallel safe
as $$ select pg_catalog.hashtextextended(p_key, pg_catalog.hashtextextended(p_topic, 0)) $$;
comment on function outbox.key_lock_id is 'The advisory lock id of a key.';
