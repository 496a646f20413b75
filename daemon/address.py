"""Where to listen, as text. Pure."""

from ipaddress import ip_address

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
    if not (address and port.isascii() and port.isdecimal() and int(port) <= HIGHEST_PORT):
        raise ValueError("must be a port, or an IP address and a port: 9432, 127.0.0.1:9432, [::1]:9432")
    return address, int(port)
