-- What the roles may do in schema outbox; nobody else may do anything. outbox.grant_roles makes it so.
--   Returns  roles: names without recalcd_, or public. privileges: as grant takes them. objects: of one kind; a routine
--            stands for all of its overloads, and whatever a routine is not granted only its owner may call.
-- recalcd_operator may do all that recalcd_daemon may: backfill, verify and run --drain recalculate, too.
-- Update of an identity column that is generated always changes nothing: it is there for `for update skip locked`.
create or replace function outbox.privileges() returns table (roles text, privileges text, kind text, objects text)
language sql immutable set search_path = pg_catalog, pg_temp
as $$
    values
        ('writer daemon operator reader', 'usage', 'schema', 'outbox'),
        -- The daemon, too: a topic's procedure may enqueue for a topic that is derived from its own.
        ('writer daemon operator', 'execute', 'routine', 'outbox.enqueue outbox.ring'),
        ('writer operator reader', 'execute', 'routine', 'outbox.is_fresh outbox.wait_fresh'),

        ('daemon operator', 'select', 'table', 'outbox.migration outbox.routine outbox.topic'),
        ('daemon operator', 'select, delete, update (event_id)', 'table', 'outbox.event'),
        ('daemon operator', 'select, insert, update, delete', 'table', 'outbox.failure outbox.suspect outbox.daemon'),
        ('daemon operator', 'select, insert', 'table', 'outbox.batch'),
        ('daemon operator', 'select, insert, delete', 'table', 'outbox.drift'),
        ('daemon operator', 'select, insert, update', 'table', 'outbox.audit'),
        ('daemon operator', 'execute', 'routine',
            'outbox.arm outbox.disarm outbox.look outbox.make_partitions outbox.drop_partitions '
            'outbox.claim outbox.list_head outbox.claim_keys outbox.take_events outbox.single_out outbox.convict '
            'outbox.fold outbox.key_lock_id outbox.lock_keys outbox.find_recalculate outbox.is_trusted outbox.recalculate outbox.settle '
            'outbox.run_batch outbox.fail_key outbox.suspect_keys '
            'outbox.is_pending outbox.next_audit outbox.list_keys outbox.check_routines outbox.find_drift outbox.describe'),

        ('operator', 'insert, update, delete', 'table', 'outbox.topic'),
        ('operator', 'delete', 'table', 'outbox.audit'),
        ('operator', 'update (keys), update (changed_keys)', 'table', 'outbox.batch'),
        ('operator', 'select, insert, update', 'table', 'outbox.job'),
        ('operator', 'select, insert, delete', 'table', 'outbox.job_key'),
        ('operator', 'execute', 'routine',
            'outbox.set_topic outbox.pause_topic outbox.resume_topic outbox.remove_topic outbox.drop_failures '
            'outbox.replay outbox.is_served outbox.is_behind outbox.list_job_keys outbox.list_part '
            'outbox.forget outbox.take_owed outbox.find_left outbox.erase_keys')
$$;
comment on function outbox.privileges is 'What the roles of recalcd may do in schema outbox.';
