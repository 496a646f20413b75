-- Whether the outbox is there to be examined.
select to_regclass('outbox.event') is not null and to_regclass('outbox.migration') is not null as is_there
