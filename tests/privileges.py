"""Who may do what with every object of ours, by the catalogs. `python tests/privileges.py` writes privileges.txt."""

import asyncio
from pathlib import Path

import asyncpg

from daemon import migrations
from daemon.embedded import embedded_postgres

TABLE = Path(__file__).with_suffix(".txt")

HEAD = """\
# What each role may do with each object of recalcd. Not for editing: what is meant stands in outbox.privileges and
# reports.privileges. `.venv/bin/python tests/privileges.py` writes this file anew; a test compares it with a database.
# One line for each object; who is not named may do nothing. Privileges held through PUBLIC would show at every role.
"""

QUERY = """
with role (number, name, oid) as (
    select 0, 'public', 0::oid
    union all
    select r.number, r.name, ('recalcd_' || r.name)::regrole::oid
    from unnest('{writer,daemon,operator,reader}'::text[]) with ordinality as r (name, number)
), ours as (
    select n.oid from pg_namespace as n where n.nspname in ('outbox', 'school', 'reports')
), privilege (kind, name) as (
    select p.kind, unnest(p.names) from (values
        ('schema', '{usage,create}'::text[]),
        ('table', '{select,insert,update,delete,truncate,references,trigger}'),
        ('column', '{select,insert,update,references}'),
        ('sequence', '{usage,select,update}'),
        ('routine', '{execute}'),
        ('type', '{usage}')
    ) as p (kind, names)
), object (kind, name, oid, attnum, acl) as (
    select 'schema', o.oid::regnamespace::text, o.oid, 0,
           (select coalesce(n.nspacl, acldefault('n', n.nspowner)) from pg_namespace as n where n.oid = o.oid)
    from ours as o
    union all
    select case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass::text, c.oid, 0,
           coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
    from pg_class as c
    where c.relnamespace in (select o.oid from ours as o) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      and not c.relispartition
    union all
    select 'column', format('%s.%I', c.oid::regclass, a.attname), c.oid, a.attnum, a.attacl
    from pg_attribute as a
    join pg_class as c on c.oid = a.attrelid
    where c.relnamespace in (select o.oid from ours as o) and c.relkind in ('r', 'p', 'v', 'm', 'f')
      and not c.relispartition and not a.attisdropped
    union all
    select 'routine', p.oid::regprocedure::text, p.oid, 0, coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc as p
    where p.pronamespace in (select o.oid from ours as o)
    union all
    select 'type', t.oid::regtype::text, t.oid, 0, coalesce(t.typacl, acldefault('T', t.typowner))
    from pg_type as t
    left join pg_class as c on c.oid = t.typrelid  -- a table's row type goes with the table
    where t.typnamespace in (select o.oid from ours as o) and t.typcategory <> 'A' and coalesce(c.relkind, 'c') = 'c'
), held as (
    select o.kind, o.name, r.number, r.name as role, p.name as privilege
    from object as o
    join privilege as p on p.kind = o.kind
    cross join role as r
    where case
        when r.oid = 0 then exists (
            select from aclexplode(o.acl) as e where e.grantee = 0 and lower(e.privilege_type) = p.name
        )
        when o.kind = 'schema' then has_schema_privilege(r.oid, o.oid, p.name)
        when o.kind = 'table' then has_table_privilege(r.oid, o.oid, p.name)
        when o.kind = 'column' then has_column_privilege(r.oid, o.oid, o.attnum::smallint, p.name)
                                    and not has_table_privilege(r.oid, o.oid, p.name)
        when o.kind = 'sequence' then has_sequence_privilege(r.oid, o.oid, p.name)
        when o.kind = 'routine' then has_function_privilege(r.oid, o.oid, p.name)
        else has_type_privilege(r.oid, o.oid, p.name)
    end
), by_role as (
    select h.kind, h.name, h.number, h.role, string_agg(h.privilege, ' ' order by h.privilege) as privileges
    from held as h
    group by h.kind, h.name, h.number, h.role
), by_privileges as (
    select b.kind, b.name, min(b.number) as number,
           format('%s: %s', string_agg(b.role, ', ' order by b.number), b.privileges) as may
    from by_role as b
    group by b.kind, b.name, b.privileges
)
select rtrim(format('%s %s   %s', o.kind, o.name, string_agg(b.may, '; ' order by b.number))) as line
from object as o
left join by_privileges as b on b.kind = o.kind and b.name = o.name
where o.kind <> 'column' or b.name is not null
group by o.kind, o.name
order by array_position('{schema,table,column,sequence,routine,type}'::text[], o.kind), o.name collate "C"
"""


async def privileges(db: asyncpg.Connection) -> str:
    """Return what the file must hold: each role, each object, each privilege."""
    async with db.transaction():
        await db.execute("set local search_path = pg_catalog")
        lines = [row["line"] for row in await db.fetch(QUERY)]
    return HEAD + "".join(f"{line}\n" for line in lines)


async def _write(dsn: str) -> None:
    db = await asyncpg.connect(dsn)
    await migrations.up(db)
    TABLE.write_text(await privileges(db), "utf-8")
    await db.close()


if __name__ == "__main__":
    with embedded_postgres(settings={"fsync": "off"}) as server:
        asyncio.run(_write(server.dsn()))
