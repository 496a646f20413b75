-- What the routines in the database are made of, beside the file that made them.
--   source: what stands between the quotes of its body, to the letter; null for a routine that is gone, or in a schema that
--   this role may not use, where to_regprocedure would raise.
select r.set_name, r.file_name, s.signature, p.prosrc as source
from outbox.routine as r
cross join unnest(r.signatures) as s (signature)
left join pg_proc as p on p.oid = case
    when has_schema_privilege(to_regnamespace(split_part(s.signature, '.', 1)), 'usage') then to_regprocedure(s.signature)
end
order by r.set_name, r.file_name, s.signature
