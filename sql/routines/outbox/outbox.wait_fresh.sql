-- Wait until the cached data of a key is up to date: read your own writes. Call it after the write's commit.
--   Needs    read committed, or every look sees the same old snapshot.
--   Takes    p_timeout: at most this long; the transaction holds its snapshot meanwhile, so keep it to seconds.
--   Returns  whether it is up to date now; false at once when the key is dead.
--   Errors   RC001 wrong isolation level.   RC007 the event is of this very transaction: commit first.
create or replace function outbox.wait_fresh(p_topic text, p_key text, p_timeout interval default '5 seconds') returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_deadline timestamptz := clock_timestamp() + p_timeout;
    v_pause_s double precision := 0.002;
    v_own constant bigint := pg_current_xact_id_if_assigned()::text::bigint;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'waiting under % would look at the same old snapshot for ever',
            current_setting('transaction_isolation')
            using errcode = 'RC001', hint = 'Wait in a transaction of its own, at isolation level read committed.';
    end if;
    -- What we see of a transaction still in progress is our own, or that of a savepoint of ours, whose id is younger.
    if outbox.is_pending(p_topic, p_key) and exists (
        select from outbox.event as e
        cross join lateral (select (e.xmin::text::bigint - v_own) & 4294967295 as distance) as d
        where e.topic = p_topic and e.key = p_key and d.distance < 2147483648
          and pg_xact_status((v_own + d.distance)::text::xid8) = 'in progress'
    ) then
        raise exception 'the change waited for is of this very transaction, which nobody else can see yet'
            using errcode = 'RC007', hint = 'Commit it, then wait.';
    end if;
    while not outbox.is_fresh(p_topic, p_key) loop
        if clock_timestamp() >= v_deadline
           or exists (select from outbox.failure as f where f.topic = p_topic and f.key = p_key and f.state = 'dead') then
            return false;
        end if;
        perform pg_sleep(v_pause_s);
        v_pause_s := least(v_pause_s * 1.5, 0.1);
    end loop;
    return true;
end $$;
comment on function outbox.wait_fresh is 'Wait until the cached data of a key is up to date, or the time is over.';
