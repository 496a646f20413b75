-- Strike a file of routines from the books, in the transaction that dropped its routines.
delete from outbox.routine
where set_name = $1::text and file_name = $2::text;
