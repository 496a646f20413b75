-- Let the roles do what a set declares, in the transaction that applied its routines.
--   $1 the function that declares it
select outbox.grant_roles($1::text) as change_count
