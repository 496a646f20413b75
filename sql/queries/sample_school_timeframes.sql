-- $1 seed, $2 timeframes. The timeframe all is there already; the others divide a school year of 300 days.
insert into school.timeframe (timeframe_id, name, starts_on, ends_on)
select md5(format('%s timeframe %s', $1::integer, t.i))::uuid, format('Term %s', t.i),
       date '2025-09-01' + 300 * (t.i - 1) / ($2::integer - 1), date '2025-08-31' + 300 * t.i / ($2::integer - 1)
from generate_series(1, $2::integer - 1) as t (i)
