-- The keys of a job's next chunk: those behind its cursor, in the order of its source.
--   Takes    p_limit: most keys.
--   Returns  is_pending: an event of the key waits already. Never said of keys that somebody named: they want those done.
--   Errors   as outbox.list_part.
create or replace function outbox.list_job_keys(p_job_id integer, p_limit integer)
returns table (key text, is_pending boolean)
language plpgsql stable
as $$
declare
    v_job outbox.job;
begin
    v_job := (select j from outbox.job as j where j.job_id = p_job_id);
    if v_job.is_named then
        return query
        select k.key::pg_catalog.text, false from outbox.job_key as k
        where k.job_id = p_job_id and (v_job.cursor is null or k.key > v_job.cursor collate "C")
        order by k.key
        limit p_limit;
    else
        return query
        select k.key, outbox.is_pending(v_job.topic, k.key)
        from outbox.list_part(v_job.topic, v_job.part, v_job.cursor, p_limit) with ordinality as k (key, number)
        order by k.number;
    end if;
end $$;
comment on function outbox.list_job_keys is 'The keys of a job''s next chunk.';
