-- Enter a migration in the books, in the transaction that applied it.
insert into outbox.migration (set_name, version, name, checksum)
values ($1::text, $2::integer, $3::text, $4::text);
