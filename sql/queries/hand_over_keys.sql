-- Leave keys to the daemon that others are at work on at the moment; failures owe theirs a retry anyway.
--   $1 topic, $2 keys
select outbox.enqueue($1::text, array(
    select k.key from unnest($2::text[]) as k (key)
    where not exists (select from outbox.failure as f where f.topic = $1::text and f.key = k.key)
), 'backfill')
