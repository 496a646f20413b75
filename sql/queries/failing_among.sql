-- Which of these keys fail?
--   $1 topic, $2 keys
select f.key from outbox.failure as f where f.topic = $1::text and f.key = any ($2::text[]) order by f.key
