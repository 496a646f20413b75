-- Is there anything to do, and when will there be?
--   $1 topics to leave alone
select l.ready, l.owed_count, l.next_attempt_s from outbox.look($1::text[]) as l
