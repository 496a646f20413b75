-- How many keys are dead?
select count(*) as dead_count from outbox.failure as f where f.state = 'dead'
