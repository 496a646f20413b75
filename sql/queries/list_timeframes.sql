-- The timeframes that a report can be asked for.
select t.timeframe_id, t.name from school.timeframe as t order by t.starts_on, t.name
