"""A certificate authority made on the spot, and a PostgreSQL that speaks TLS with its certificates."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import asyncpg
import pytest

from daemon.embedded import EmbeddedPostgres, _give_to_nobody, create

HOST = "localhost"
"""What the server's certificate names; 127.0.0.1 is not in it."""

CLERK = "clerk"
"""Who must show a certificate of this name."""

_HBA = f"""
local   all all             trust
hostssl all {CLERK} 127.0.0.1/32 trust clientcert=verify-full
hostssl all {CLERK} ::1/128      trust clientcert=verify-full
host    all all     127.0.0.1/32 trust
host    all all     ::1/128      trust
"""
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Authority:
    """Signs certificates; its own is what others trust."""

    folder: Path
    name: str = "authority"

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.crt"

    def found(self) -> "Authority":
        """Make its key, and a certificate that it signs itself."""
        key, subject = self.folder / f"{self.name}.key", f"/CN=recalcd test {self.name}"
        _openssl("req", "-x509", *_KEY, "-days", "2", "-subj", subject, "-keyout", key, "-out", self.certificate)
        return self

    def sign(self, common_name: str, file: str, *, days: int = 2) -> tuple[Path, Path]:
        """Make a key and a certificate for a host or a user; 0 days: it has expired a second from now."""
        certificate, key, request, names = (self.folder / f"{file}.{end}" for end in ("crt", "key", "csr", "cnf"))
        names.write_text(f"subjectAltName = DNS:{common_name}\n")
        _openssl("req", *_KEY, "-subj", f"/CN={common_name}", "-keyout", key, "-out", request)
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.folder / f"{self.name}.key",
            "-CAcreateserial", "-days", str(days), "-extfile", names, "-out", certificate,
        )  # fmt: skip
        return certificate, key


@dataclass
class TlsPostgres(EmbeddedPostgres):
    """A server from the system's packages: the embedded one is built without TLS."""

    @property
    def _bin_to_run(self) -> Path:
        return _bin_with_tls()

    def initialise(self) -> None:
        """Create the cluster, which lets everybody in, but CLERK with a certificate only."""
        if os.geteuid() == 0:
            _give_to_nobody(self.home, self.data)
        options = ["--username=postgres", "--auth=trust", "--no-locale", "--encoding=utf8", "--no-sync"]
        command = [str(self._bin_to_run / "initdb"), "-D", str(self.data), *options]
        subprocess.run(command, check=True, **{**self._surroundings, "stdout": subprocess.DEVNULL})
        (self.data / "pg_hba.conf").write_text(_HBA)

    def show(self, certificate: Path, key: Path) -> None:
        """Put a certificate in the place of the server's, for its next start or reload."""
        for source, name in ((certificate, "server.crt"), (key, "server.key")):
            target = self.data / name
            shutil.copyfile(source, target)
            target.chmod(0o600)
            if os.geteuid() == 0:
                _give_to_nobody(target)

    def dsn(self, database: str = "postgres") -> str:
        """Return the URI of a database for the superuser, over the socket."""
        return f"postgresql://postgres@/{database}?{urlencode({'host': self.home, 'port': self.settings['port']})}"

    def uri(self, user: str = "postgres", host: str = HOST, **query: object) -> str:
        """Return a URI over TCP."""
        return f"postgresql://{user}@{host}:{self.settings['port']}/postgres?{urlencode(query)}"


@contextmanager
def tls_server(authority: Authority) -> Iterator[TlsPostgres]:
    """Run a server with a certificate for HOST while the block runs; skip where none can."""
    _bin_with_tls()
    template = create()
    shutil.copyfile(authority.certificate, template.data.parent / "authority.crt")
    (template.data.parent / "authority.crt").chmod(0o644)
    settings: dict[str, object] = {
        "listen_addresses": HOST,
        "port": _free_port(),
        "ssl": True,
        "ssl_ca_file": template.data.parent / "authority.crt",
        "fsync": "off",
    }
    server = TlsPostgres(template.version, template.home, template.data, settings)
    try:
        server.initialise()
        server.show(*authority.sign(HOST, "server"))
        server.start()
        asyncio.run(_make_clerk(server.dsn()))
        yield server
    finally:
        try:
            server.stop("immediate")
        finally:
            shutil.rmtree(server.home)


async def _make_clerk(dsn: str) -> None:
    admin = await asyncpg.connect(dsn)
    await admin.execute(f"create role {CLERK} login")
    await admin.close()


def _bin_with_tls() -> Path:
    """Return the folder of the newest PostgreSQL of the system that was built with OpenSSL; skip without one."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates: apt install openssl")
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "postgres").exists()]
    found += [Path(name).resolve().parent for name in filter(None, [shutil.which("postgres")])]
    for folder in sorted(found, key=_version, reverse=True):
        with_tls = subprocess.run([folder / "pg_config", "--configure"], capture_output=True, text=True, check=False)
        if re.search(r"--with-(?:openssl|ssl)", with_tls.stdout):
            return folder
    pytest.skip("needs a PostgreSQL with TLS, which the embedded one is built without: apt install postgresql")


def _version(folder: Path) -> int:
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+", said)
    return int(found[0]) if found else 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
