-- Which of these keys does a topic neither list nor owe anything?
--   $1 topic, $2 keys
select k.key from unnest($2::text[]) as k (key)
where not exists (select from outbox.failure as f where f.topic = $1::text and f.key = k.key)
  and not outbox.is_pending($1::text, k.key)
except
select l.key from outbox.list_keys($1::text) as l (key)
order by 1
