-- Strike a migration from the books, in the transaction that took it back.
delete from outbox.migration
where set_name = $1::text and version = $2::integer;
