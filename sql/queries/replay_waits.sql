-- Do events of a replay still wait, with somebody there to take them?
--   $1 topic, $2 keys
select outbox.is_served($1::text) and exists (
    select from outbox.event as e
    where e.topic = $1::text and e.key = any ($2::text[]) and e.reason = 'replay'
) as waits
