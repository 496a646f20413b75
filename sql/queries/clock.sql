-- The database's clock, the only one that times are compared with.
select clock_timestamp() as now
