-- Give the rest of the transaction the time that the topic allows for a recalculation.
--   $1 topic
select set_config('statement_timeout', t.statement_timeout_s || 's', true) from outbox.topic as t where t.topic = $1::text
