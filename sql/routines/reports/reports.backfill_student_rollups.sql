-- Recalculate every pupil, because they exist and not because an event says so: the first filling of the cached tables
-- for those who deploy by migration alone. Safe beside a daemon, safe to repeat, and a repetition writes nothing.
--   Locks    the keys of one chunk at a time; commits after each, so call it outside a transaction.
--   Needs    read committed. No setting of its own: a routine with settings may not commit, so every name is qualified.
--   Takes    p_chunk: pupils per commit, 1 to 1,000; each holds one advisory lock until then.
--   Errors   22023 p_chunk out of range.   2D000 called inside a transaction.   And those of reports.recalculate_students.
create or replace procedure reports.backfill_student_rollups(in p_chunk integer default 500)
language plpgsql
as $$
declare
    v_keys text[];
    v_changed_keys text[];
    v_after text;
    v_done bigint := 0;
    v_changed bigint := 0;
begin
    if p_chunk is null or p_chunk not between 1 and 1000 then
        raise exception 'a chunk of % pupils is not possible', coalesce(p_chunk::pg_catalog.text, 'null')
            using errcode = '22023', hint = 'Choose 1 to 1,000; 500 is a good size.';
    end if;
    loop
        v_keys := array(select k.key from reports.list_students(v_after, p_chunk) as k (key));
        exit when v_keys = '{}';
        call reports.recalculate_students(v_keys, v_changed_keys);
        commit;
        v_after := v_keys[pg_catalog.cardinality(v_keys)];
        v_done := v_done + pg_catalog.cardinality(v_keys);
        v_changed := v_changed + pg_catalog.cardinality(v_changed_keys);
        raise notice '% pupils recalculated, of whom % changed', v_done, v_changed;
    end loop;
end $$;
comment on procedure reports.backfill_student_rollups is 'Recalculate every pupil, with a commit per chunk.';
