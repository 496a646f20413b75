-- Is there a daemon that takes the events of a topic? It says every ten seconds at the least that it lives.
create or replace function outbox.is_served(p_topic text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select exists (select from outbox.topic as t where t.topic = p_topic and t.paused_at is null)
       and exists (
           select from outbox.daemon as d
           where d.ended_at is null and d.seen_at > clock_timestamp() - interval '1 minute'
       )
$$;
comment on function outbox.is_served is 'Is there a daemon that takes the events of a topic?';
