-- Find the routine that a topic names, among those whose signature serves and whose owner is trusted; the one that reports
-- changes is preferred. Its call names the type of its null, or a namesake that takes anything else there would be called.
--   Takes    p_name: schema.name, quoted as SQL would quote it; no argument list.
--   Returns  routine: null when there is none. call: the statement that calls it with the keys as $1.
--            reports: whether it returns the keys that changed.
create or replace function outbox.find_recalculate(p_name text, out routine oid, out call text, out reports boolean)
language sql stable set search_path = pg_catalog, pg_temp
as $$
    with wanted as (
        select parse_ident(p_name) as ident
    )
    select p.oid,
           format(
               case when p.prokind = 'f' then 'select %I.%I($1)' when p.pronargs = 2 then 'call %I.%I($1, null::pg_catalog.text[])' else 'call %I.%I($1)' end,
               n.nspname, p.proname
           ),
           p.pronargs = 2 or p.prorettype = 'text[]'::regtype
    from wanted as w
    join pg_namespace as n on n.nspname = w.ident[1]
    join pg_proc as p on p.pronamespace = n.oid and p.proname = w.ident[2]
    where cardinality(w.ident) = 2
      and p.proargtypes[0] = 'text[]'::regtype
      and not p.proretset and p.provariadic = 0
      and outbox.is_trusted(p.proowner, n.nspowner)
      and case p.prokind
              when 'p' then p.pronargs = 1 and p.proargmodes is null
                            or p.pronargs = 2 and p.proargtypes[1] = 'text[]'::regtype and p.proargmodes = '{i,b}'
              when 'f' then p.pronargs = 1 and p.provolatile = 'v'
                            and p.prorettype in ('text[]'::regtype, 'void'::regtype)
          end
    order by 3 desc, p.prokind desc
    limit 1
$$;
comment on function outbox.find_recalculate is 'Find the routine that a topic names, if its signature serves.';
