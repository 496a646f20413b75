"""TLS to the database: what its errors mean, what they ask for, and how well a connection is protected."""

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg.connect_utils import SSLMode

from daemon.errors import DatabaseRefuses, DatabaseUnavailable

VERIFIED = "sslmode=verify-full&sslrootcert=FILE"
FILES = ("sslrootcert", "sslcrl", "sslcert", "sslkey")
_SYSTEM = "system"
"""What libpq takes for the authorities of the system, and asyncpg for the name of a file."""

# https://docs.openssl.org/master/man1/openssl-verification-options/; those that waiting may cure, and the others.
_EXPIRED = (9, 10, 12)
_UNTRUSTED = (2, 18, 19, 20, 21)
_OTHER_HOST = (62, 64)
_NO_REVOCATIONS = 3
_REVOKED = 23


def check_files(dsn: str) -> None:
    """Raise DatabaseRefuses for a file that the URI names and that can't be read; asyncpg would not say which."""
    query = {name: values[-1] for name, values in parse_qs(urlsplit(dsn).query).items()}
    if query.get("sslrootcert") == _SYSTEM:
        authorities = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
        raise DatabaseRefuses(
            f"sslrootcert={_SYSTEM} means nothing here. Name a file of authorities; the system's is {authorities}."
        )
    for name in FILES:
        if path := query.get(name):
            try:
                with Path(path).open("rb"):
                    pass
            except OSError as error:
                raise DatabaseRefuses(
                    f"The file {path} can't be read: {error.strerror}. Correct {name}= in RECALCD_DATABASE_URL, or let "
                    "the user of this process read it."
                ) from None


def refusal(error: BaseException) -> DatabaseUnavailable | None:
    """Return what to tell of an error that TLS made, with its remedy; None when TLS has no part in it.

    DatabaseRefuses when only a setting can cure it, at either end. A server that refuses our certificate says so after
    the handshake: asyncpg then knows a lost connection, and TLS as its cause.
    """
    if isinstance(error.__cause__, ssl.SSLError):
        error = error.__cause__
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        kind = DatabaseUnavailable if error.verify_code in _EXPIRED else DatabaseRefuses
        return kind(f"The server's certificate is not accepted: {said}. {_remedy(error.verify_code)}")
    if isinstance(error, ssl.SSLError):
        if "ALERT" in (error.reason or ""):
            said = (error.reason or "").partition("ALERT_")[2].replace("_", " ").lower()
            return DatabaseRefuses(
                f"The server refuses our certificate: {said}. Let sslcert= name one that is valid, signed by the "
                "authority in ssl_ca_file of the server."
            )
        return DatabaseRefuses(
            f"TLS fails: {error.reason}. See that sslcert= and sslkey= belong together, and that their files and that "
            "of sslrootcert= are PEM."
        )
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error):
        return DatabaseRefuses("The server does not offer TLS. Set ssl = on there, with a certificate and its key.")
    return None


def _remedy(verify_code: int) -> str:
    if verify_code in _OTHER_HOST:
        return "Name the host in RECALCD_DATABASE_URL as the certificate does, or have it issued for that name."
    if verify_code in _EXPIRED:
        return "Renew it on the server, and set the clocks of both."
    if verify_code in _UNTRUSTED:
        return "Let sslrootcert= in RECALCD_DATABASE_URL name the file of the authority that signed it."
    if verify_code == _REVOKED:
        return "Have a new one issued for the server."
    if verify_code == _NO_REVOCATIONS:
        return "Let sslcrl= name a file with the revocations of every authority in the chain."
    return "See that sslrootcert= names its authority."


@dataclass(frozen=True, slots=True)
class Link:
    """How a connection is protected."""

    address: str | None
    """Of the other end; None for a Unix socket."""
    is_encrypted: bool
    is_demanded: bool
    """Whether a server that offers no TLS would have been refused."""
    is_verified: bool
    """Whether the certificate was signed by an authority that we trust."""
    names_host: bool
    """Whether it was checked to be that of the host we asked for."""

    @property
    def is_remote(self) -> bool:
        """Whether somebody may listen in between."""
        return self.address is not None and not ipaddress.ip_address(self.address.partition("%")[0]).is_loopback


def link_of(opened: asyncpg.Connection) -> Link:
    """Look at the connection that was made: variables of libpq and service files have a say in it, too."""
    transport = opened._transport  # type: ignore[attr-defined]  # noqa: SLF001  # asyncpg offers no way to either
    mode = opened._params.sslmode  # type: ignore[attr-defined]  # noqa: SLF001
    peer = transport.get_extra_info("peername")
    context = transport.get_extra_info("sslcontext")
    return Link(
        address=peer[0] if isinstance(peer, tuple) else None,
        is_encrypted=transport.get_extra_info("ssl_object") is not None,
        is_demanded=mode >= SSLMode.require,
        is_verified=context is not None and context.verify_mode is ssl.CERT_REQUIRED,
        names_host=context is not None and context.check_hostname,
    )
