"""The daemon as its own process, cut off from its database: links that hang, and packets that really vanish."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from engine import (
    GATE,
    asleep,
    done,
    enqueue,
    failures,
    impatient,
    make_ledger,
    make_topic,
    on_duty,
    sessions,
    until_empty,
)
from proxy import proxy_to
from pydantic import SecretStr
from servers import Connect, add_daemon_login, as_daemon
from waiting import eventually, wait_until_blocked

from daemon import migrations, telemetry
from daemon.embedded import PORT, create
from daemon.runner import PARTING_S
from daemon.settings import load

WORKER, LISTENER = "recalcd worker", "recalcd listener"
LOAD_S = 5.0
"""How late a busy machine may be at anything."""

IDLE_S, INTERVAL_S, COUNT = 1, 1, 2
GIVE_UP_S = IDLE_S + COUNT * INTERVAL_S
# What takes 30 s as shipped. Nothing else is changed.
RUN_IMPATIENTLY = f"""
import daemon.database as database
database.IDLE_S, database.INTERVAL_S, database.COUNT, database.GIVE_UP_S = {IDLE_S}, {INTERVAL_S}, {COUNT}, {GIVE_UP_S}
database._SERVER_SETTINGS.update(
    tcp_keepalives_idle="{IDLE_S}", tcp_keepalives_interval="{INTERVAL_S}", tcp_keepalives_count="{COUNT}",
    tcp_user_timeout="{GIVE_UP_S}s", client_connection_check_interval="{INTERVAL_S}s",
)
from cli import main
main(["run"])
"""


@dataclass
class Daemon:
    """A daemon at work in a process of its own."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def told(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


@contextlib.contextmanager
def running(command: list[str], log: Path, **settings: object) -> Iterator[Daemon]:
    """Run a daemon while the block runs."""
    environment = os.environ | {f"RECALCD_{name.upper()}": str(value) for name, value in settings.items()}
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stderr=stderr)
    try:
        yield Daemon(process, log)
    finally:
        process.kill()
        process.wait()


async def started(db: asyncpg.Connection) -> None:
    """Wait for a process to have started, which takes a busy machine a while, and sleep."""

    async def listens() -> bool:
        return await sessions(db, LISTENER) == 1

    await eventually(listens, timeout_s=60)
    await asleep(db)


async def test_told_to_stop_while_every_link_hangs_it_ends_in_time_and_charges_nobody(
    db: asyncpg.Connection, connect: Connect, dsn: str, tmp_path: Path
) -> None:
    await make_ledger(db)
    await make_topic(db, "t", f"perform pg_advisory_xact_lock_shared({GATE});")
    gate = await connect("gatekeeper")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    grace_s, command = 2, [sys.executable, "-m", "cli", "run"]
    async with proxy_to(dsn) as proxy:
        with running(command, tmp_path / "log", database_url=as_daemon(proxy.dsn), stop_grace_s=grace_s) as daemon:
            await started(db)
            await enqueue(db, "t", "k")
            await wait_until_blocked(db, WORKER)
            proxy.is_silent = True
            for link in proxy.links:
                link.vanish()
            daemon.process.send_signal(signal.SIGTERM)
            told_at = time.monotonic()

            async def has_ended() -> bool:
                return daemon.process.poll() is not None

            await eventually(has_ended, timeout_s=30)
            assert time.monotonic() - told_at < grace_s + PARTING_S + LOAD_S
            assert daemon.process.returncode == 0
    await gate.execute(f"select pg_advisory_unlock({GATE})")
    async with on_duty(impatient(load(database_url=dsn))):
        await until_empty(db)
    assert await failures(db) == {}


@dataclass(frozen=True)
class Network:
    """A host of its own for the daemon: a network namespace, one link away from the server."""

    name: str
    server: str
    client: str

    def run(self, *command: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.name, *command], check=True)

    def drop_all_packets(self) -> None:
        """Let the host vanish: what it sends is lost, and what is sent to it."""
        self.run("nft", "add table inet gone")
        for hook in ("input", "output"):
            self.run("nft", f"add chain inet gone {hook} {{ type filter hook {hook} priority 0; policy drop; }}")

    def restore(self) -> None:
        self.run("nft", "delete table inet gone")


@pytest.fixture
def network() -> Iterator[Network]:
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install iproute2 nftables")
    token = secrets.token_hex(3)
    place = f"198.18.{secrets.randbelow(256)}.{4 * secrets.randbelow(64)}"  # for tests of networks: RFC 2544
    base, _, last = place.rpartition(".")
    network = Network(f"recalcd-{token}", f"{base}.{int(last) + 1}", f"{base}.{int(last) + 2}")
    ours, theirs = f"rc{token}a", f"rc{token}b"
    if subprocess.run(["ip", "netns", "add", network.name], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not permitted here: run as root, or with CAP_SYS_ADMIN")
    try:
        for command in (
            f"link add {ours} type veth peer name {theirs} netns {network.name}",
            f"address add {network.server}/30 dev {ours}",
            f"link set {ours} up",
            f"-n {network.name} address add {network.client}/30 dev {theirs}",
            f"-n {network.name} link set {theirs} up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        yield network
    finally:
        subprocess.run(["ip", "netns", "delete", network.name], check=True)


@pytest.fixture
async def far_dsn(network: Network) -> AsyncIterator[tuple[str, str]]:
    """Start a server on the network, with a migrated database; return its URI here, and from the daemon's host."""
    server = create(settings={"listen_addresses": network.server, "fsync": "off"})
    try:
        server.initialise()
        with (server.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {network.client}/32 trust\n")
        server.start()
        connection = await asyncpg.connect(server.dsn())
        await migrations.up(connection)
        await add_daemon_login(connection)
        await connection.close()
        yield server.dsn(), f"postgresql://postgres@{network.server}:{PORT}/postgres"
    finally:
        server.stop("immediate")
        shutil.rmtree(server.home)


@pytest.mark.own_server
async def test_a_host_that_vanishes_is_given_up_by_both_kernels_and_its_keys_are_free(
    network: Network, far_dsn: tuple[str, str], tmp_path: Path
) -> None:
    near, far = far_dsn
    db, gate = await asyncpg.connect(near), await asyncpg.connect(near)
    await make_ledger(db)
    await make_topic(db, "t", f"perform pg_advisory_xact_lock_shared({GATE});")
    await gate.execute(f"select pg_advisory_lock({GATE})")
    command = ["ip", "netns", "exec", network.name, sys.executable, "-c", RUN_IMPATIENTLY]
    rare = {"heartbeat_s": 3600, "poll_interval_s": 3600, "linger_s": 0}  # only the kernels notice anything
    with running(command, tmp_path / "log", database_url=as_daemon(far), **rare) as daemon:
        await started(db)
        await enqueue(db, "t", "k")
        await wait_until_blocked(db, WORKER)
        network.drop_all_packets()

        async def is_forgotten() -> bool:
            return not await sessions(db, WORKER) and not await sessions(db, LISTENER)

        await eventually(is_forgotten, GIVE_UP_S + INTERVAL_S + LOAD_S)
        await gate.execute(f"select pg_advisory_unlock({GATE})")
        async with on_duty(impatient(load(database_url=SecretStr(near)), poll_interval_s=1)):
            await until_empty(db)
        assert await done(db, "t") == ["k"]

        async def has_noticed() -> bool:
            return bool(daemon.told(telemetry.BATCH_VANISHED))

        await eventually(has_noticed, GIVE_UP_S + LOAD_S)
        network.restore()
        await asleep(db)
        await enqueue(db, "t", "k")
        await until_empty(db)
    assert await failures(db) == {}
    await db.close()
    await gate.close()
