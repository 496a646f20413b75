"""Fixtures: a database of its own for every test, on a server that `--pg` chooses."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
from engine import impatient
from links import BEAT_S
from planted import found_in_files
from proxy import Proxy, proxy_to
from pydantic import SecretStr
from servers import PLACES, Connect, Psql, Rings, TestServer, running
from waiting import eventually as _eventually
from waiting import wait_until_blocked as _wait_until_blocked

import daemon.doorbell
from daemon.database import close
from daemon.doorbell import Doorbell
from daemon.embedded import program
from daemon.settings import Settings, load

DEFAULT_IMAGE = "postgres:18"
OUTSIDE = ("RECALCD_", "TELEM_", "OTEL_", "PG", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")

_server_key = pytest.StashKey[TestServer]()
_cleanup_key = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("recalcd")
    group.addoption("--pg", default="18", help="PostgreSQL to test on: 18, 16, docker, or a URL (default: 18)")
    group.addoption(
        "--pg-image",
        default=os.environ.get("RECALCD_TEST_IMAGE", DEFAULT_IMAGE),
        help="image for --pg docker (default: $RECALCD_TEST_IMAGE, else %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores SIGINT for what it starts in the background, and children inherit that: Ctrl-C would do nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    where = config.getoption("--pg")
    if where not in PLACES and not where.startswith(("postgresql://", "postgres://")):
        raise pytest.UsageError(f"--pg takes {', '.join(PLACES)} or a URI that begins with postgresql://, not {where}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist where the one server of the run is; the first worker makes it start."""
    node.workerinput["server"] = asdict(_server(node.config))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server; reached after Ctrl-C, too."""
    if _cleanup_key in config.stash:
        config.stash[_cleanup_key].close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what never meets the server of --pg: a run on another one can leave it out."""
    for item in items:
        if "server" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.own_server)


def _server(config: pytest.Config) -> TestServer:
    """Return the run's server; start it when it is first asked for."""
    if hasattr(config, "workerinput"):
        return TestServer(**config.workerinput["server"])
    if _server_key not in config.stash:
        cleanup = config.stash.setdefault(_cleanup_key, ExitStack())
        place = running(config.getoption("--pg"), config.getoption("--pg-image"))
        config.stash[_server_key] = cleanup.enter_context(place)
    return config.stash[_server_key]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(
            ("RECALCD_", "TELEM_", "OTEL_", "PG", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")
        ):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def nothing_planted_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Read what the daemons of all tests wrote, when all are done: it holds no name and no password."""
    yield
    folder = tmp_path_factory.getbasetemp()
    written = [file for pattern in ("*.log", "output") for file in folder.rglob(pattern) if file.is_file()]
    assert found_in_files(written) == {}


@pytest.fixture
def any_ring_is_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a daemon of this process mute its bell at each ring, whether anybody waits or not."""
    on_ring = Doorbell._on_ring

    def ring(doorbell: Doorbell, *told: object) -> None:
        on_ring(doorbell, *told)
        doorbell._suspected.set()

    monkeypatch.setattr(Doorbell, "_on_ring", ring)
    monkeypatch.setattr(daemon.doorbell, "CROWD", 0)


@pytest.fixture(autouse=True)
def log_to_stderr() -> Iterator[None]:
    """Keep the log of a daemon in this process apart from the answer of a command that runs beside it."""
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> TestServer:
    """Server of the run, and its migrated template."""
    return _server(request.config)


@pytest.fixture(scope="session")
def worker() -> str:
    """Name of this process among those of the run."""
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


@pytest.fixture
async def dsn(server: TestServer, worker: str) -> AsyncIterator[str]:
    """URI of a fresh database with both sets applied; gone after the test."""
    async with server.database(worker) as dsn:
        yield dsn


@pytest.fixture
async def empty_dsn(server: TestServer, worker: str) -> AsyncIterator[str]:
    """URI of a database without anything of ours; gone after the test."""
    async with server.database(worker, template="template0") as dsn:
        yield dsn


@pytest.fixture
async def connect(dsn: str) -> AsyncIterator[Connect]:
    """Open connections to the test's database, as often as called; all are closed after the test."""
    opened: list[asyncpg.Connection] = []

    async def connect(application_name: str = "test", **options: Any) -> asyncpg.Connection:
        settings = {"application_name": application_name}
        opened.append(await asyncpg.connect(dsn, server_settings=settings, **options))
        return opened[-1]

    yield connect
    for connection in opened:
        await close(connection)


@pytest.fixture
async def db(connect: Connect) -> asyncpg.Connection:
    """Connect to the test's database."""
    return await connect()


@pytest.fixture
async def rings(connect: Connect) -> Rings:
    """Listen as a daemon does."""
    listener, heard = await connect("bystander"), list[str]()
    await listener.add_listener("outbox", lambda *told: heard.append(told[-1]))

    async def rings() -> list[str]:
        await listener.execute("select")  # its answer comes behind what was sent before
        return heard

    return rings


@pytest.fixture
def settings(dsn: str, tmp_path: Path) -> Settings:
    """Set the test's database, and leave the rest as shipped; change with model_copy(update=…)."""
    return load(database_url=dsn, telem_dir=tmp_path / "logs")


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """Stand between a daemon and the test's database."""
    async with proxy_to(dsn) as proxy:
        yield proxy


@pytest.fixture
def through(settings: Settings, proxy: Proxy) -> Callable[..., Settings]:
    """Set the way through the proxy, and short heartbeats."""

    def through(**update: Any) -> Settings:
        beat = {"heartbeat_s": BEAT_S, "heartbeat_timeout_s": BEAT_S, "connect_timeout_s": 2 * BEAT_S}
        return impatient(settings, database_url=SecretStr(proxy.dsn), **(beat | update))

    return through


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """Collect what is logged, at every level."""
    with structlog.testing.capture_logs() as logged:
        yield logged


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    return _eventually


@pytest.fixture
def wait_until_blocked() -> Callable[[asyncpg.Connection, str], Awaitable[None]]:
    return _wait_until_blocked


@pytest.fixture
def psql(dsn: str) -> Psql:
    """Run SQL in psql on the test's database, stopping at the first error; return what it prints."""

    def run(script: str, *options: str, dsn: str = dsn) -> str:
        command = [str(program("psql")), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *options, dsn]
        return subprocess.run(command, input=script, capture_output=True, check=True, text=True).stdout

    return run
