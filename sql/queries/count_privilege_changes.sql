-- How many grants differ from what a set declares?
--   $1 the function that declares it
select count(*) from outbox.privilege_changes($1::text)
