"""Where to listen and where to connect, as text. Pure."""

from ipaddress import ip_address
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
HIGHEST_PORT = 65535


def parse_address(text: str) -> tuple[str, int]:
    """Take apart 9432 (of the loopback), 10.0.0.7:9432 and [::1]:9432. Raises ValueError, whose text is for people.

    No names: looking one up could make the daemon wait.
    """
    host, colon, port = text.rpartition(":")
    try:
        address = str(ip_address(host.removeprefix("[").removesuffix("]"))) if colon else LOOPBACK
    except ValueError:
        address = ""
    if not (address and _is_port(port)):
        raise ValueError("must be a port, or an IP address and a port: 9432, 127.0.0.1:9432, [::1]:9432")
    return address, int(port)


def check_uri(text: str) -> None:
    """Refuse a libpq URI that no driver could read. Raises ValueError, which quotes nothing: there may be a password.

    A `/`, `#`, `?` or `@` in a password that is not encoded ends the part of the URI that it is in.
    """
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("must be a libpq URI that begins with postgresql://")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("must have the address of its host in brackets only if that is IPv6") from None
    hosts = parts.netloc.rpartition("@")[2].split(",")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts]
    is_cut = parts.fragment or not {"/", "@"}.isdisjoint(parts.path[1:])
    is_cut = is_cut or any("=" not in option for option in parts.query.split("&") if option)
    if is_cut or not all(_is_port(port) for port in ports if port):
        raise ValueError(
            "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters in the password "
            "percent-encoded (/ is %2F, # is %23, ? is %3F, @ is %40), and a port up to 65535"
        )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) <= HIGHEST_PORT
