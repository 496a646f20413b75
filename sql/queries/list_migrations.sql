-- The migrations that the database holds.
select set_name, version, name, checksum, applied_at
from outbox.migration
order by set_name, version;
