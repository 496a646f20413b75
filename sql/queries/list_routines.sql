-- The files of routines that the database holds; missing: the signatures that somebody dropped since. Into a schema
-- that this role may not use it can't look: to_regprocedure would raise.
select
    set_name,
    file_name,
    checksum,
    signatures,
    applied_at,
    array(
        select s.signature
        from (
            select u.signature, to_regnamespace(split_part(u.signature, '.', 1)) as schema
            from unnest(signatures) as u (signature)
        ) as s
        where case
                  when s.schema is null then true
                  when has_schema_privilege(s.schema, 'usage') then to_regprocedure(s.signature) is null
                  else false
              end
    ) as missing
from outbox.routine
order by set_name, file_name;
