-- A pupil's cached rows, for verify to show what differs: by table, then by timeframe (and unit), then by column.
--   Takes    p_key: the id of a pupil as text.
--   Errors   22P02 the key is not the id of a pupil.
create or replace function reports.describe_student(p_key text) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'report_student_rollups', (
            select coalesce(jsonb_object_agg(
                c.timeframe_id, to_jsonb(c) - '{student_id, timeframe_id, calculated_at}'::text[]
            ), '{}')
            from reports.report_student_rollups as c
            where c.student_id = any (reports.student_ids(array[p_key]))
        ),
        'report_student_unit_rollups', (
            select coalesce(jsonb_object_agg(
                c.timeframe_id || ' ' || c.unit_id, to_jsonb(c) - '{student_id, timeframe_id, unit_id, calculated_at}'::text[]
            ), '{}')
            from reports.report_student_unit_rollups as c
            where c.student_id = any (reports.student_ids(array[p_key]))
        )
    )
$$;
comment on function reports.describe_student is 'A pupil''s cached rows as jsonb, for verify to show what differs.';
