-- Note that a key failed; an error told by the server clears the key of having made its batch vanish.
--   $1 topic, $2 key, $3 charge it, $4 events taken, $5 SQLSTATE, $6 message, $7 detail, $8 hint, $9 context
with acquitted as (
    delete from outbox.suspect as s where s.topic = $1::text and s.key = $2::text
)
select f.state, f.attempts, f.next_attempt_at
from outbox.fail_key(
    $1::text, $2::text, $3::boolean, $4::bigint, $5::text, $6::text, $7::text, $8::text, $9::text
) as f
where f.topic is not null  -- null when the topic was removed meanwhile
