-- Does a set declare what the roles may do?
--   $1 the function that would
select to_regproc($1::text) is not null and to_regproc('outbox.grant_roles') is not null as declares
