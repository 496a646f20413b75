"""Everything `recalcd migrate up` would do, as one SQL file for other tools: plain psql, Supabase, dbmate, Flyway.

Each block is one statement: it looks into the books, does nothing when its file is in place, and else applies the file
and enters it, by the statements that migrate up runs. So the file works in a transaction or out of one, and twice.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from daemon import __version__
from daemon.migration_files import SET_NAMES, Migration, MigrationSet, RoutineFile, load_sets
from daemon.migration_steps import LOCK, OPEN_BOOKS, RECORD_MIGRATION, RECORD_ROUTINE
from daemon.sql import SQL_ROOT

_HEAD = """\
-- migrate:up
-- recalcd {version}: {sets}. Written by `recalcd migrate dump`; write it anew rather than edit it.
-- Creates what is missing, skips what is in place; `recalcd migrate status` sees all of it as applied afterwards.
"""

_BLOCK = """
-- {title}
do $recalcd$
declare
    v_search_path text := current_setting('search_path');
    v_check_function_bodies text := current_setting('check_function_bodies');
    v_earlier text[];
    v_made text[];
    v_signature text;
    v_foreign text;
begin
    perform pg_advisory_xact_lock({lock});
    perform set_config('search_path', 'pg_catalog', true), set_config('check_function_bodies', 'off', true);
{body}
    -- The tool's own statements may follow in the same transaction.
    perform set_config('search_path', v_search_path, true);
    perform set_config('check_function_bodies', v_check_function_bodies, true);
end $recalcd$;
"""

_OPEN_BOOKS = """\
    if to_regclass('outbox.migration') is null then
        execute {script};
    end if;"""

_REFUSE_WITHOUT_NEEDED = """\
    if to_regclass('outbox.migration') is not null then
        select array[name] into v_earlier from outbox.migration where set_name = '{needed}' and version = {newest};
    end if;
    if v_earlier is null then
        raise exception 'Set {needed} has to be applied first.'
            using hint = 'recalcd migrate dump without --set writes a file with both.';
    end if;"""

_REFUSE_FOREIGN = """\
    select string_agg(format('%s %s_%s', set_name, lpad(version::text, 4, '0'), held.name), ', ') into v_foreign
    from outbox.migration as held
    left join (values {shipped}) as shipped (set_name, version, checksum) using (set_name, version)
    where set_name in ({sets}) and held.checksum is distinct from shipped.checksum;
    if v_foreign is not null then
        raise exception 'This database holds migrations that are not those of recalcd {version}: %', v_foreign
            using hint = 'Use the release that migrated it, or a later one.';
    end if;"""

_MIGRATION = """\
    if not exists (select from outbox.migration where set_name = '{set_name}' and version = {version}) then
        execute {script};
        execute {record} using '{set_name}', {version}, '{name}', '{checksum}';
    end if;"""

_DROP_GONE = """\
    for v_signature in
        select unnest(signatures) from outbox.routine where set_name = '{set_name}' and file_name <> all ({shipped})
    loop
        execute 'drop routine if exists ' || v_signature;
    end loop;
    delete from outbox.routine where set_name = '{set_name}' and file_name <> all ({shipped});"""

_ROUTINE = """\
    select signatures into v_earlier
    from outbox.routine where set_name = '{set_name}' and file_name = '{file_name}';
    if not exists (
        select from outbox.routine
        where set_name = '{set_name}' and file_name = '{file_name}' and checksum = '{checksum}'
            and not exists (select from unnest(signatures) as made (signature) where to_regprocedure(signature) is null)
    ) then
        execute {script};
        execute {record} into v_made using '{set_name}', '{file_name}', '{checksum}';
        if v_made = '{{}}' then
            raise exception 'The file {file_name} does not create the routine that it is named after.';
        end if;
        for v_signature in select unnest(v_earlier) except select unnest(v_made) loop
            execute 'drop routine if exists ' || v_signature;
        end loop;
    end if;"""

_GRANT_ROLES = """\
    if to_regproc('{declaration}') is not null and to_regproc('outbox.grant_roles') is not null then
        perform outbox.grant_roles('{declaration}');
    end if;"""


def dump(set_names: Sequence[str] = SET_NAMES, sql_root: Path = SQL_ROOT) -> str:
    """Return the file that applies the named sets."""
    shipped = load_sets(sql_root)
    chosen = [each for each in shipped if each.name in set_names]
    needed = [each for each in shipped[: SET_NAMES.index(chosen[0].name)] if each.migrations]
    head = _HEAD.format(version=__version__, sets=", ".join(each.name for each in chosen))
    return head + "".join(_blocks(chosen, needed))


def _blocks(chosen: Sequence[MigrationSet], needed: Sequence[MigrationSet]) -> Iterator[str]:
    for each in needed:
        yield _block("What must be there", _REFUSE_WITHOUT_NEEDED.format(needed=each.name, newest=each.newest))
    yield _block("The books of recalcd migrate", _OPEN_BOOKS.format(script=_quoted(OPEN_BOOKS)))
    yield _block("What must not be there", _refuse_foreign(chosen))
    for each in chosen:
        for migration in each.migrations:
            yield _block(f"Migration {migration}", _migration(migration))
        yield _block(f"Routines of set {each.name} that are no more", _drop_gone(each))
        for routine in each.routines:
            yield _block(f"Routine {routine}", _routine(routine))
        grants = _GRANT_ROLES.format(declaration=f"{each.name}.privileges")
        yield _block(f"What the roles may do with set {each.name}", grants)


def _block(title: str, body: str) -> str:
    return _BLOCK.format(title=title, lock="{}, {}".format(*LOCK), body=body)


def _refuse_foreign(chosen: Sequence[MigrationSet]) -> str:
    rows = [(each.set_name, each.version, each.checksum) for one in chosen for each in one.migrations]
    shipped = ", ".join(f"('{set_name}', {version}, '{checksum}')" for set_name, version, checksum in rows)
    return _REFUSE_FOREIGN.format(
        shipped=shipped, sets=", ".join(f"'{each.name}'" for each in chosen), version=__version__
    )


def _migration(migration: Migration) -> str:
    return _MIGRATION.format(
        set_name=migration.set_name,
        version=migration.version,
        name=migration.name,
        checksum=migration.checksum,
        script=_quoted(migration.up),
        record=_quoted(RECORD_MIGRATION),
    )


def _drop_gone(shipped: MigrationSet) -> str:
    names = ", ".join(f"'{routine.file_name}'" for routine in shipped.routines)
    return _DROP_GONE.format(set_name=shipped.name, shipped=f"array[{names}]::text[]")


def _routine(routine: RoutineFile) -> str:
    return _ROUTINE.format(
        set_name=routine.set_name,
        file_name=routine.file_name,
        checksum=routine.checksum,
        script=_quoted(routine.text),
        record=_quoted(RECORD_ROUTINE),
    )


def _quoted(text: str) -> str:
    """Quote a file whole, inside a block that is quoted itself."""
    if "$recalcd" in text:
        raise ValueError("A file must not hold the quotes that it is wrapped in: $recalcd")
    return f"$recalcd_file$\n{text.rstrip()}\n$recalcd_file$"
