"""TLS to the database: what is accepted, what is refused and with which advice, and what doctor says of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from authority import CLERK, HOST, Authority, TlsPostgres, tls_server
from pydantic import SecretStr
from waiting import eventually

from daemon.database import connection
from daemon.doctor_check import Patient
from daemon.doctor_tls import check_tls, complaints
from daemon.errors import DatabaseRefuses, DatabaseUnavailable
from daemon.settings import Settings, load
from daemon.tls import Link, link_of

pytestmark = pytest.mark.own_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority")).found()


@pytest.fixture(scope="module")
def other_authority(authority: Authority) -> Authority:
    return replace(authority, name="stranger").found()


@pytest.fixture(scope="module")
def postgres(authority: Authority) -> Iterator[TlsPostgres]:
    with tls_server(authority) as postgres:
        yield postgres


@pytest.fixture(autouse=True)
async def hangs_up(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Close what asyncpg was refused on: over TLS it only begins to, and the end of the test may be sooner."""
    loop, opened = asyncio.get_running_loop(), list[asyncio.Transport]()
    connect: Any = loop.create_connection

    async def noted(*arguments: Any, **options: Any) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        transport, protocol = await connect(*arguments, **options)
        opened.append(transport)
        return transport, protocol

    monkeypatch.setattr(loop, "create_connection", noted)
    yield
    for transport in opened:
        transport.abort()
    await asyncio.sleep(0)


def settings_for(uri: str) -> Settings:
    return load(database_url=uri)


async def link(uri: str) -> Link:
    """Connect as every part of recalcd does; return how it is protected."""
    async with connection(settings_for(uri), application_name="test") as opened:
        found = link_of(opened)
        assert await opened.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()") == found.is_encrypted
        return found


async def refused(uri: str, kind: type[DatabaseUnavailable] = DatabaseRefuses) -> str:
    """Return the sentence with which the URI is refused."""
    with pytest.raises(DatabaseUnavailable) as caught:
        await link(uri)
    assert type(caught.value) is kind, caught.value
    return str(caught.value)


def full(authority: Authority) -> dict[str, Any]:
    return {"sslmode": "verify-full", "sslrootcert": authority.certificate}


async def test_verify_full_connects_to_the_host_of_the_certificate(postgres: TlsPostgres, authority: Authority) -> None:
    found = await link(postgres.uri(**full(authority)))
    assert (found.is_encrypted, found.is_demanded, found.is_verified, found.names_host) == (True, True, True, True)


async def test_another_host_name_is_refused(postgres: TlsPostgres, authority: Authority) -> None:
    said = await refused(postgres.uri(host="127.0.0.1", **full(authority)))
    assert "certificate is not valid for '127.0.0.1'" in said
    assert "Name the host in RECALCD_DATABASE_URL as the certificate does" in said
    assert (
        await link(postgres.uri(host="127.0.0.1", sslmode="verify-ca", sslrootcert=authority.certificate))
    ).is_verified


async def test_an_unknown_authority_is_refused(postgres: TlsPostgres, other_authority: Authority) -> None:
    for mode in ("verify-full", "verify-ca", "require"):  # as libpq does: a file that is named is used
        said = await refused(postgres.uri(sslmode=mode, sslrootcert=other_authority.certificate))
        assert "Let sslrootcert= in RECALCD_DATABASE_URL name the file of the authority that signed it." in said


async def test_an_expired_certificate_is_refused_until_it_is_renewed(
    postgres: TlsPostgres, authority: Authority
) -> None:
    uri = postgres.uri(**full(authority))
    admin = await asyncpg.connect(postgres.dsn())
    try:
        postgres.show(*authority.sign(HOST, "expired", days=0))
        await admin.execute("select pg_reload_conf()")

        async def is_refused() -> str:
            try:
                await link(uri)
            except DatabaseRefuses:
                raise  # would end the daemon's start, and waiting may cure it
            except DatabaseUnavailable as error:
                return str(error)
            return ""

        said = await eventually(is_refused)
        assert "certificate has expired. Renew it on the server" in said
        postgres.show(*authority.sign(HOST, "renewed"))
        await admin.execute("select pg_reload_conf()")

        async def is_accepted() -> bool:
            return not await is_refused()

        assert await eventually(is_accepted)
    finally:
        await admin.close()


class SaysNo(asyncio.Protocol):
    """Answers the request for TLS as a server without does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"N")
        transport.close()


async def test_a_server_without_tls_is_refused_where_tls_is_demanded(authority: Authority) -> None:
    loop = asyncio.get_running_loop()
    async with await loop.create_server(SaysNo, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        for mode in ("require", "verify-full"):
            uri = f"postgresql://127.0.0.1:{port}/x?sslmode={mode}&sslrootcert={authority.certificate}"
            said = await refused(uri)
            assert said == "The server does not offer TLS. Set ssl = on there, with a certificate and its key."


async def test_a_client_certificate_is_shown(postgres: TlsPostgres, authority: Authority) -> None:
    certificate, key = authority.sign(CLERK, "clerk")
    shown = {**full(authority), "sslcert": certificate, "sslkey": key}
    assert (await link(postgres.uri(user=CLERK, **shown))).is_verified


async def test_without_its_client_certificate_a_role_is_refused(postgres: TlsPostgres, authority: Authority) -> None:
    assert "requires a valid client certificate" in await refused(postgres.uri(user=CLERK, **full(authority)))
    certificate, key = authority.sign("somebody", "somebody")
    shown = {**full(authority), "sslcert": certificate, "sslkey": key}
    assert "authentication failed" in await refused(postgres.uri(user=CLERK, **shown))


async def test_a_client_certificate_of_a_stranger_is_refused(
    postgres: TlsPostgres, authority: Authority, other_authority: Authority
) -> None:
    certificate, key = other_authority.sign(CLERK, "impostor")
    shown = {**full(authority), "sslcert": certificate, "sslkey": key}
    with pytest.raises(DatabaseUnavailable) as caught:
        await link(postgres.uri(user=CLERK, **shown))
    said = str(caught.value)
    if type(caught.value) is DatabaseRefuses:
        assert "The server refuses our certificate: unknown ca. Let sslcert= name one that is valid" in said
    else:  # the server hung up before it had read all, which makes the kernel discard its last words
        assert "closed in the middle of operation. Does it accept the certificate of sslcert=? Its log says." in said


async def test_a_key_of_another_certificate_is_refused(postgres: TlsPostgres, authority: Authority) -> None:
    certificate, _ = authority.sign(CLERK, "clerk")
    _, key = authority.sign("somebody", "somebody")
    said = await refused(postgres.uri(user=CLERK, **full(authority), sslcert=certificate, sslkey=key))
    assert "See that sslcert= and sslkey= belong together" in said


@pytest.mark.parametrize("name", ["sslrootcert", "sslcrl", "sslcert", "sslkey"])
async def test_a_file_that_is_missing_is_named(postgres: TlsPostgres, authority: Authority, name: str) -> None:
    said = await refused(postgres.uri(**(full(authority) | {name: Path("/nonexistent/file.pem")})))
    assert said.startswith(f"The file /nonexistent/file.pem can't be read: No such file or directory. Correct {name}=")


async def test_authorities_of_the_system_are_a_file(postgres: TlsPostgres) -> None:
    assert "Name a file of authorities" in await refused(postgres.uri(sslmode="verify-full", sslrootcert="system"))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"sslmode": "disable"}, "is not encrypted"),
        ({}, "is encrypted only because the server offered it"),
        ({"sslmode": "prefer"}, "is encrypted only because the server offered it"),
        ({"sslmode": "allow"}, "is not encrypted"),
        ({"sslmode": "require"}, "is encrypted, but nobody checks to whom"),
        ({"sslmode": "verify-ca", "sslrootcert": True}, "may be that of any host of its authority"),
        ({"sslmode": "verify-full", "sslrootcert": True}, None),
    ],
    ids=lambda each: each.get("sslmode", "none") if isinstance(each, dict) else "",
)
async def test_doctor_warns_of_a_remote_host(
    postgres: TlsPostgres, authority: Authority, query: dict[str, Any], says: str | None
) -> None:
    if "sslrootcert" in query:
        query = query | {"sslrootcert": authority.certificate}
    found = await link(postgres.uri(**query))
    assert not found.is_remote
    assert complaints(found) == [], "what stays on this host is nobody's business"
    said = [each.sentence for each in complaints(replace(found, address="192.0.2.1"))]
    assert [says in each for each in said] == [True] if says else said == []
    assert all("sslmode=verify-full" in each.remedy for each in complaints(replace(found, address="2001:db8::1")))


async def test_doctor_looks_at_its_own_connection(
    postgres: TlsPostgres, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri, count in ((postgres.uri(sslmode="require"), 1), (postgres.dsn(), 0)):
        monkeypatch.setattr(Link, "is_remote", property(lambda link: link.address is not None))
        given = settings.model_copy(update={"database_url": SecretStr(uri)})
        async with connection(given, application_name="test") as opened:
            assert len([each async for each in check_tls(Patient(opened, given))]) == count
