-- Refuse the isolation levels at which a writer, having waited for another's lock, would not see what the other wrote.
-- It would then miss a pupil who joined meanwhile, and leave that pupil's report wrong for ever.
--   Errors   SC012 repeatable read or serializable.
create or replace function school.require_read_committed() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'the functions of schema school do not work under %', current_setting('transaction_isolation')
            using errcode = 'SC012', hint = 'Begin the transaction with: isolation level read committed.';
    end if;
end $$;
comment on function school.require_read_committed is 'Refuse an isolation level at which a writer could overlook whom it affects.';
