-- After a recalculation: of keys that should be gone, find one that is not.
--   Returns  key: one that the topic lists, or whose cached rows it describes with anything but empty objects; null when
--            there is none. is_certain: false when the topic can do neither, and nobody knows.
--   Errors   RC004 a function of the topic is gone.   And its own.
create or replace function outbox.find_left(p_topic text, p_keys text[], out key text, out is_certain boolean)
language plpgsql volatile  -- or it would not see what its transaction has just recalculated
as $$
declare
    v_described constant jsonb[] := outbox.describe(p_topic, p_keys);
begin
    is_certain := v_described is not null;
    select p_keys[n.number] into key
    from pg_catalog.generate_subscripts(p_keys, 1) as n (number)
    where pg_catalog.jsonb_path_exists(v_described[n.number], '$.** ? (@.type() != "object" && @.type() != "array" && @.type() != "null")')
    limit 1;
    if key is null and exists (select from outbox.topic as t where t.topic = p_topic and t.list_keys is not null) then
        is_certain := true;
        select l.key into key from outbox.list_keys(p_topic) as l (key) where l.key = any (p_keys) limit 1;
    end if;
end $$;
comment on function outbox.find_left is 'Of keys that should be gone, find one that is not.';
