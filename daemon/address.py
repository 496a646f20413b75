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
    if not _is_whole(text):
        raise ValueError(
            "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters in the password "
            "percent-encoded (/ is %2F, # is %23, ? is %3F, @ is %40, [ is %5B), and a port up to 65535"
        )


def _is_whole(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
    except ValueError:  # brackets
        return False
    hosts = parts.netloc.rpartition("@")[2].split(",")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts]
    options = [option for option in parts.query.split("&") if option]
    return not (
        parts.fragment
        or parts.netloc.count("@") > 1
        or not {"/", "@"}.isdisjoint(parts.path[1:])
        or (not parts.path and "@" in parts.query and "@" not in parts.netloc)
        or not all("=" in option for option in options)
        or not all(_is_port(port) for port in ports if port)
    )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) <= HIGHEST_PORT
