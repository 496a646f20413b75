-- Which of these keys are suspected of having ended a backend?
--   $1 topic, $2 keys
select s.key from outbox.suspect as s where s.topic = $1::text and s.key = any ($2::text[])
