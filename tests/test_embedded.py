"""The embedded server itself; independent of --pg."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from daemon import embedded
from daemon.embedded import EmbeddedPostgres, embedded_postgres, program
from daemon.errors import DatabaseUnavailable, RecalcdError

as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="as a plain user there is nothing to drop")


def ask(server: EmbeddedPostgres, question: str) -> Any:
    async def answer() -> Any:
        connection = await asyncpg.connect(server.dsn())
        try:
            return await connection.fetchval(question)
        finally:
            await connection.close()

    return asyncio.run(answer())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a folder that the server's user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("version", [18, 16])
def test_a_server_of_either_version_takes_its_settings_and_leaves_nothing_behind(version: int) -> None:
    settings = {"max_connections": 17, "track_commit_timestamp": True, "application_name": "it's one"}
    with embedded_postgres(version=version, settings=settings) as server:
        pid = server.pid
        assert pid is not None
        assert ask(server, "select current_setting('server_version_num')::int / 10000") == version
        assert ask(server, "show max_connections") == "17"
        assert ask(server, "show track_commit_timestamp") == "on"
        assert ask(server, "show application_name") == "it's one"
    assert not is_alive(pid)
    assert not server.home.exists()


def test_it_opens_no_port_and_lets_no_other_user_in() -> None:
    with embedded_postgres() as server:
        assert ask(server, "show listen_addresses") == ""
        assert server.home.stat().st_mode & 0o077 == 0


def test_psql_understands_the_dsn() -> None:
    with embedded_postgres() as server:
        command = [str(program("psql")), "-XAt", "-c", "select current_user", server.dsn()]
        assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "postgres\n"


def test_what_was_committed_survives_an_immediate_stop() -> None:
    with embedded_postgres() as server:
        ask(server, "create table kept as select 7 as n")
        first = server.pid
        server.stop("immediate")
        assert server.pid is None
        server.start()
        assert server.pid != first
        assert ask(server, "select n from kept") == 7


def test_a_given_directory_keeps_its_cluster(directory: Path) -> None:
    with embedded_postgres(directory) as server:
        ask(server, "create table kept as select 7 as n")
    with embedded_postgres(directory) as server:
        assert ask(server, "select n from kept") == 7


def test_servers_start_side_by_side() -> None:
    def system_identifier() -> int:
        with embedded_postgres() as server:
            return int(ask(server, "select system_identifier from pg_control_system()"))

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: system_identifier(), range(3)))) == 3


def test_an_error_in_the_block_stops_the_server() -> None:
    seen: list[EmbeddedPostgres] = []
    pids: list[int] = []

    def fail() -> None:
        with embedded_postgres() as server:
            seen.append(server)
            pids.append(server.pid or 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not is_alive(pids[0])
    assert not seen[0].home.exists()


def test_ctrl_c_stops_the_server() -> None:
    script = """
import signal
from daemon.embedded import embedded_postgres
with embedded_postgres() as server:
    print(server.pid, server.home, flush=True)
    signal.pause()
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        pid, home = child.stdout.readline().split()
        child.send_signal(signal.SIGINT)
        child.wait(30)
    assert not is_alive(int(pid))
    assert not Path(home).exists()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing_behind() -> None:
    with (
        pytest.raises(DatabaseUnavailable, match=r"could not start(.|\n)*no_such_setting") as caught,
        embedded_postgres(settings={"no_such_setting": 1}),
    ):
        pass
    assert caught.value.exit_code == 3


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(RecalcdError, match="no embedded PostgreSQL 12: the wheel carries 18 and 16"):
        embedded.create(version=12)


def test_without_the_wheel_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    with pytest.raises(RecalcdError, match=r"pip install 'recalcd\[demo\]'"):
        embedded.create()


@as_root_only
def test_root_runs_it_from_a_copy_when_nobody_may_not_enter_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_nobody_can_run", lambda _: False)
    with embedded_postgres() as server:
        assert ask(server, "show data_directory").startswith(str(server.home))
        assert Path(f"/proc/{server.pid}/exe").readlink().is_relative_to(server.home)
    assert not server.home.exists()


@as_root_only
def test_a_plain_user_runs_it_as_himself() -> None:
    if not embedded._nobody_can_run(program("postgres")):
        pytest.skip("no plain user can reach this virtual environment")
    script = """
import os, pwd
from daemon.embedded import embedded_postgres
nobody = pwd.getpwnam("nobody")
os.setgroups([]), os.setgid(nobody.pw_gid), os.setuid(nobody.pw_uid)
with embedded_postgres() as server:
    print(os.stat(f"/proc/{server.pid}").st_uid == nobody.pw_uid)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr  # where coverage may complain of its folder
