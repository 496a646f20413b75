-- What the routines in the database are made of, beside the file that made them.
--   source: null for a routine that is gone; what stands between the quotes of its body, to the letter.
select r.set_name, r.file_name, s.signature, p.prosrc as source
from outbox.routine as r
cross join unnest(r.signatures) as s (signature)
left join pg_proc as p on p.oid = to_regprocedure(s.signature)
order by r.set_name, r.file_name, s.signature
