-- How outbox.event is to be vacuumed: the table's own settings.
select o.option_name as name, o.option_value as value
from pg_class as c
cross join pg_options_to_table(c.reloptions) as o
where c.oid = 'outbox.event'::regclass
