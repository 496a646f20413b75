-- Enter a file of routines in the books, in the transaction that applied it, and return the signatures it made: what
-- carries the file's name and was written by this transaction or a savepoint of it (age 0 or less), since an older
-- overload may still be there.
insert into outbox.routine as r (set_name, file_name, checksum, signatures)
select
    $1::text,
    $2::text,
    $3::text,
    array(
        select p.oid::regprocedure::text
        from pg_catalog.pg_proc as p
        inner join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        where format('%s.%s.sql', n.nspname, p.proname) = $2::text
            and age(p.xmin) <= 0
        order by 1
    )
on conflict (set_name, file_name) do update
set checksum = excluded.checksum, signatures = excluded.signatures, applied_at = excluded.applied_at
returning r.signatures;
