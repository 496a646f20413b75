-- Erase keys from what outlives their recalculation: the history, jobs, and the audit. Reads the whole history of the
-- topic, which has no index by key.
--   Locks    the rows that hold a key. The caller holds the keys' locks, so nobody writes new ones.
--   Returns  job_count, batch_count: rows of outbox.job and outbox.batch from which a key was taken.
--   Errors   RC017 a job that has not ended stands at a key, and would not know where to go on.
create or replace function outbox.erase_keys(p_topic text, p_keys text[], out job_count bigint, out batch_count bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_job_id constant integer := (
        select min(j.job_id) from outbox.job as j
        where j.topic = p_topic and j.cursor = any (p_keys) and j.ended_at is null
    );
begin
    if v_job_id is not null then
        raise exception 'job % stands at one of the keys', v_job_id
            using errcode = 'RC017', hint = 'Let it go on, or cancel it: recalcd job resume, recalcd job cancel.';
    end if;
    with named as (
        delete from outbox.job_key as k
        using outbox.job as j
        where j.job_id = k.job_id and j.topic = p_topic and k.key = any (p_keys)
        returning k.job_id
    ), ended as (
        update outbox.job as j set cursor = null where j.topic = p_topic and j.cursor = any (p_keys)
        returning j.job_id
    )
    select count(*) into job_count from (select n.job_id from named as n union select e.job_id from ended as e) as j;
    update outbox.audit as a set after_key = null where a.topic = p_topic and a.after_key = any (p_keys);
    with erased as (
        update outbox.batch as b
        set keys = array(
                select k.key from unnest(b.keys) with ordinality as k (key, number)
                where k.key <> all (p_keys) order by k.number
            ),
            changed_keys = case when b.changed_keys is not null then array(
                select k.key from unnest(b.changed_keys) with ordinality as k (key, number)
                where k.key <> all (p_keys) order by k.number
            ) end
        where b.topic = p_topic and b.keys && p_keys
        returning b.batch_id
    )
    select count(*) into batch_count from erased;
end $$;
comment on function outbox.erase_keys is 'Erase keys from the history, from jobs, and from the audit.';
