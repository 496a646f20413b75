-- The files of routines that the database holds; missing: the signatures that somebody dropped since.
select
    set_name,
    file_name,
    checksum,
    signatures,
    applied_at,
    array(
        select signature from unnest(signatures) as signature where to_regprocedure(signature) is null
    ) as missing
from outbox.routine
order by set_name, file_name;
