-- Rows of the source that were written since pupils' cached rows were last changed.
--   $1 keys, $2 most rows of each
select w.key, w.source, w.row_key, w.written_at from reports.written_since($1::text[], $2::integer) as w
