-- Which paused topics have something waiting: an event, or a key whose recalculation is owed?
select t.topic from outbox.topic as t
where t.paused_at is not null
  and (
      exists (select from outbox.event as e where e.topic = t.topic)
      or exists (select from outbox.failure as f where f.topic = t.topic and f.state = 'retrying')
  )
order by t.topic
