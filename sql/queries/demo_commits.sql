-- When transactions committed, in the given order.
--   $1 their ids
select pg_xact_commit_timestamp(w.xid::xid8::xid) as committed_at
from unnest($1::text[]) with ordinality as w (xid, number)
order by w.number
