-- The pupils behind keys of the topic reports.student.
--   Takes    p_keys: ids as uuid writes them. Another spelling of an id would be another key, under another lock.
--   Errors   22P02 a key is not spelt so. The message does not repeat it: nobody knows what it is.
create or replace function reports.student_ids(p_keys text[]) returns uuid[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from unnest(p_keys) as k (key)
        where k.key !~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
    ) then
        raise exception 'a key of topic reports.student is not the id of a pupil'
            using errcode = '22P02', hint = 'Enqueue student_id::text: lower case, with hyphens.';
    end if;
    return p_keys::uuid[];
end $$;
comment on function reports.student_ids is 'The pupils behind keys of the topic reports.student.';
