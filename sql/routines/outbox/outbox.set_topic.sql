-- Register a topic, or change it. Null leaves a setting as it is (or at its default, for a new topic).
--   Takes    p_recalculate: schema.name of a routine with one of these signatures:
--                procedure (in p_keys text[], inout p_changed_keys text[])
--                function (p_keys text[]) returns text[]            volatile
--                procedure (in p_keys text[]), function (p_keys text[]) returns void    work without drift detection
--            p_list_keys: schema.name of a function (p_after text, p_limit integer) returns setof text.
--            p_describe: schema.name of a function (p_key text) returns jsonb.
--   Errors   RC004 no such routine, or one of another signature; the hint says which it should have.
--            23514 a number is out of its range.
create or replace function outbox.set_topic(
    p_topic text,
    p_recalculate text default null,
    p_list_keys text default null,
    p_max_attempts integer default null,
    p_retry_base_s integer default null,
    p_retry_max_s integer default null,
    p_batch_keys integer default null,
    p_statement_timeout_s integer default null,
    p_describe text default null
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    if p_recalculate is null and not exists (select from outbox.topic as t where t.topic = p_topic) then
        raise exception 'a new topic needs the routine that recalculates it'
            using errcode = 'RC004', hint = 'Pass p_recalculate => ''schema.name''.';
    end if;
    perform outbox.check_routines(p_recalculate, p_list_keys, p_describe);
    insert into outbox.topic as t (
        topic, recalculate, list_keys, max_attempts, retry_base_s, retry_max_s, batch_keys, statement_timeout_s,
        describe
    )
    values (
        p_topic, coalesce(p_recalculate, ''), p_list_keys, coalesce(p_max_attempts, 8), coalesce(p_retry_base_s, 5),
        coalesce(p_retry_max_s, 3600), coalesce(p_batch_keys, 500), coalesce(p_statement_timeout_s, 30), p_describe
    )
    on conflict (topic) do update set
        recalculate = coalesce(p_recalculate, t.recalculate),
        list_keys = coalesce(p_list_keys, t.list_keys),
        max_attempts = coalesce(p_max_attempts, t.max_attempts),
        retry_base_s = coalesce(p_retry_base_s, t.retry_base_s),
        retry_max_s = coalesce(p_retry_max_s, t.retry_max_s),
        batch_keys = coalesce(p_batch_keys, t.batch_keys),
        statement_timeout_s = coalesce(p_statement_timeout_s, t.statement_timeout_s),
        describe = coalesce(p_describe, t.describe);
end $$;
comment on function outbox.set_topic is 'Register a topic, or change it; checks the routines it names.';
