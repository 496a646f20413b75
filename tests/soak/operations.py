"""What applications and operators do beside the daemons: hold transactions and locks, poison keys, run commands."""

import asyncio
import contextlib
import json
import os
import sys

import asyncpg
from engine import LEDGER

from daemon.database import DATABASE_ERRORS
from soak.faults import TAKEOVER_S, Fault, Scene
from soak.stage import ACCOUNTS, FRAGILE, FRAGILE_KEYS


async def hold_transaction(scene: Scene) -> None:
    """Write, and commit late: the horizon is pinned, and the event becomes visible after later ones."""
    key = scene.chance.choice(FRAGILE_KEYS)
    async with scene.stage.session("soak holder") as db, db.transaction(isolation="repeatable_read"):
        await db.execute("select outbox.enqueue($1, $2)", FRAGILE, key)
        await asyncio.sleep(scene.chance.uniform(2, 6))


async def hold_keys(scene: Scene) -> None:
    async with scene.stage.session("soak holder") as db, db.transaction():
        await db.execute("select outbox.lock_keys($1, $2::text[])", LEDGER, scene.chance.sample(ACCOUNTS, 5))
        await asyncio.sleep(scene.chance.uniform(1, 3))


async def deadlock(scene: Scene) -> None:
    """Lock cached rows first and keys after, the other way round than the daemons do."""
    async with scene.stage.session("soak partner") as db:
        for account in scene.chance.sample(ACCOUNTS, 8):
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                async with db.transaction():
                    await db.execute("select from ledger.balance where account = $1 for update", account)
                    await db.execute("select outbox.enqueue($1, $2)", LEDGER, account)
                    await asyncio.sleep(0.1)
                    await db.execute("select outbox.lock_keys($1, array[$2])", LEDGER, account)


async def poison(scene: Scene) -> None:
    """Let the recalculation of some keys fail for a while, until they are dead perhaps; then cure and replay them."""
    keys = scene.chance.sample(FRAGILE_KEYS, 3)
    kind = scene.chance.choice(["raises", "raises", "times out", "kills its backend"])
    async with scene.stage.session("soak poisoner") as db:
        await db.execute("insert into fragile.poison select unnest($1::text[]), $2 on conflict do nothing", keys, kind)
        await db.execute("select outbox.enqueue($1, $2::text[])", FRAGILE, keys)
    await asyncio.sleep(scene.chance.uniform(2, 5))
    await insist(scene, "delete from fragile.poison")
    await run(scene, "replay", FRAGILE, "--dead", "--yes")


async def pause_and_resume(scene: Scene) -> None:
    topic = scene.chance.choice([LEDGER, "reports.student"])
    async with scene.stage.session("soak operator") as db:
        await db.execute("select outbox.pause_topic($1, 'soak')", topic)
    await asyncio.sleep(scene.chance.uniform(0.5, 2))
    await insist(scene, f"select outbox.resume_topic('{topic}')")


async def insist(scene: Scene, sql: str) -> None:
    """Undo something, however often that takes."""
    while True:
        with contextlib.suppress(*DATABASE_ERRORS):
            async with scene.stage.session("soak operator") as db:
                await db.execute(sql)
                return
        await asyncio.sleep(0.2)


async def replay(scene: Scene) -> None:
    keys = [word for account in scene.chance.sample(ACCOUNTS, 10) for word in ("--key", account)]
    await run(scene, "replay", LEDGER, *keys, "--yes")


async def backfill(scene: Scene) -> None:
    await run(scene, "backfill")


async def verify(scene: Scene) -> None:
    code, answer = await run(scene, "verify", "--json")
    if code == 1 and answer.startswith("{") and (drifted := json.loads(answer)["drifted"]):
        scene.stage.problem(f"recalcd verify found drift: {drifted}")


OPERATIONS = [
    Fault("transaction held", hold_transaction, 0),
    Fault("keys held", hold_keys, TAKEOVER_S),
    Fault("deadlocks sought", deadlock, TAKEOVER_S),
    Fault("keys poisoned", poison, TAKEOVER_S),
    Fault("topic paused", pause_and_resume, TAKEOVER_S),
    Fault("replay", replay, 0),
    Fault("backfill", backfill, 0),
    Fault("verify", verify, 0),
]


async def run(scene: Scene, *arguments: str) -> tuple[int, str]:
    """Run a command past the proxy; it may fail for what else befalls the server, but never by a bug."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *arguments),
        env=os.environ | {"RECALCD_DATABASE_URL": scene.stage.dsn},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, said = await process.communicate()
    if b"Traceback" in said or process.returncode not in (0, 1, 2, 3):
        last_line = said.decode(errors="replace").strip().rpartition("\n")[2]
        scene.stage.problem(f"recalcd {' '.join(arguments[:2])} ended with {process.returncode}: {last_line}")
    return process.returncode or 0, answer.decode()
