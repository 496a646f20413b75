"""Two releases beside each other: the daemon of each against the schema of the other, and an upgrade beneath a daemon.

Each either keeps the promise, or ends with exit 4 and a sentence. `.ci/upgrade` takes the two newest version tags;
`.ci/upgrade OLD NEW` any two commits.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

import asyncpg
from engine import until_empty
from oracle import drift
from school import School, found

from daemon.embedded import EmbeddedPostgres, embedded_postgres

SCHEMA_MISMATCH = 4
PATIENCE_S = 120
CONSEQUENCES_S = 3.0
"""In which a daemon that can't go on will have noticed: each write wakes it."""
COMMAND = (sys.executable, "-m", "cli")

Attempt = Callable[[str], Awaitable[str]]


class BrokenPromise(Exception):
    """A release did neither what it should nor say why not."""


@dataclass(frozen=True)
class Release:
    """A commit, checked out. It runs in this checkout's virtual environment: what differs is code and SQL."""

    name: str
    tree: Path

    def recalcd(self, dsn: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of this release to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.tree,
            env=environment(dsn),
            capture_output=True,
            check=False,
            text=True,
            timeout=PATIENCE_S,
        )

    def succeed(self, dsn: str, *arguments: str) -> None:
        """Run a command that has no reason to fail."""
        done = self.recalcd(dsn, *arguments)
        if done.returncode != 0:
            said = done.stderr.strip().rpartition("\n")[2]
            raise BrokenPromise(f"{self.name}: recalcd {' '.join(arguments)} ended with {done.returncode}: {said}")


def environment(dsn: str) -> dict[str, str]:
    """Return the settings, with nobody's but ours; and no path by which Python would find another checkout."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("RECALCD_", "TELEM_", "PYTHON"))}
    return ours | {"RECALCD_DATABASE_URL": dsn, "RECALCD_LOG_FORMAT": "json"}


def main(commits: Sequence[str]) -> int:
    """Return the exit code: 1 when a promise is broken."""
    names = list(commits) or newest_tags()
    if len(names) < 2:
        print(f"!!! SKIPPED: it takes two version tags (v*) to try an upgrade, and there are {len(names)}.")
        return 0
    old_name, new_name = names[-2:]
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded_postgres(settings={"fsync": "off"}) as server,
        checked_out(old_name, Path(folder, "old")) as old,
        checked_out(new_name, Path(folder, "new")) as new,
    ):
        return asyncio.run(compare(server, old, new))


def newest_tags() -> list[str]:
    """Return the two newest version tags, the older first; fewer when there are fewer."""
    tags = git("tag", "--list", "v[0-9]*", "--sort=version:refname").split()
    return tags[-2:]


@contextmanager
def checked_out(commit: str, tree: Path) -> Iterator[Release]:
    """Check a commit out for as long as the block runs."""
    git("worktree", "add", "--quiet", "--detach", str(tree), commit)
    try:
        yield Release(commit, tree)
    finally:
        git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> str:
    """Return what git says."""
    return subprocess.run(["git", *arguments], capture_output=True, check=True, text=True).stdout


async def compare(server: EmbeddedPostgres, old: Release, new: Release) -> int:
    """Try everything, and tell."""
    attempts: list[tuple[str, Attempt]] = [
        (f"the daemon of {old.name} on the schema of {new.name}", partial(meet, schema=new, daemon=old)),
        (f"the daemon of {new.name} on the schema of {old.name}", partial(meet, schema=old, daemon=new)),
        (f"{new.name} migrating beneath a daemon of {old.name}", partial(upgrade, old=old, new=new)),
    ]
    broken = 0
    for number, (what, attempt) in enumerate(attempts):
        try:
            outcome = await attempt(await create(server, f"upgrade_{number}"))
        except BrokenPromise as error:
            broken += 1
            outcome = f"BROKEN: {error}"
        print(f"{what}: {outcome}", flush=True)
    return 1 if broken else 0


async def create(server: EmbeddedPostgres, database: str) -> str:
    """Make an empty database; return its URI."""
    admin = await asyncpg.connect(server.dsn())
    await admin.execute(f"create database {database}")
    await admin.close()
    return server.dsn(database)


async def meet(dsn: str, *, schema: Release, daemon: Release) -> str:
    """Start one release's daemon on the other's schema; say what became of it."""
    schema.succeed(dsn, "migrate", "up")
    school = await open_school(dsn)
    await write(school)
    done = daemon.recalcd(dsn, "run", "--drain")
    if refusal := refusal_of(done.returncode, done.stderr):
        await settled_by(schema, dsn, school)
        return f"refuses: {refusal}"
    if done.returncode != 0:
        raise BrokenPromise(f"the daemon ended with exit code {done.returncode}: {done.stderr[-500:]}")
    await see_truth(schema, dsn, school)
    return "works"


async def upgrade(dsn: str, *, old: Release, new: Release) -> str:
    """Migrate while the old release's daemon runs and applications write; then let the new one take over."""
    old.succeed(dsn, "migrate", "up")
    school = await open_school(dsn)
    with tempfile.TemporaryFile("w+") as said:
        process = await asyncio.create_subprocess_exec(*COMMAND, "run", cwd=old.tree, env=environment(dsn), stderr=said)
        try:
            await write(school)
            await until_empty(school.db)
            await asyncio.to_thread(new.succeed, dsn, "migrate", "up")
            await write(school)
            await asyncio.wait([asyncio.create_task(process.wait())], timeout=CONSEQUENCES_S)
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(process.wait(), PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
        said.seek(0)
        refusal = refusal_of(code, said.read())
    if code != 0 and not refusal:
        raise BrokenPromise(f"the daemon ended with exit code {code}")
    await settled_by(new, dsn, school)
    return f"it refuses to go on: {refusal}" if refusal else "it works on until it is stopped"


def refusal_of(code: int, said: str) -> str:
    """Return the sentence of an exit 4; an exit 4 without one is no refusal."""
    last_line = said.strip().rpartition("\n")[2]
    return last_line.removeprefix("recalcd: ") if code == SCHEMA_MISMATCH and last_line.endswith(".") else ""


async def settled_by(release: Release, dsn: str, school: School) -> None:
    """Let the daemon that fits do what the other one left."""
    await asyncio.to_thread(release.succeed, dsn, "run", "--drain")
    await see_truth(release, dsn, school)


async def see_truth(release: Release, dsn: str, school: School) -> None:
    """Compare the reports with the oracle, and with what the release itself thinks."""
    if wrong := await drift(school.db):
        raise BrokenPromise(f"the reports are not true: {wrong[:3]}")
    await asyncio.to_thread(release.succeed, dsn, "verify")


async def open_school(dsn: str) -> School:
    """Found a small school."""
    return await found(await asyncpg.connect(dsn), pupils=5)


async def write(school: School) -> None:
    """Set an assignment, and give everybody feedback."""
    assignment = await school.assign()
    for number, pupil in enumerate(school.pupils):
        await school.record_feedback(assignment, pupil, Decimal(number) / 10)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
