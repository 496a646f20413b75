"""Talks to systemd: sd_notify(3) by hand, a datagram per message. Does nothing without $NOTIFY_SOCKET; never raises."""

import socket
import time

from daemon.settings import supervisor

SEND_TIMEOUT_S = 0.1  # the event loop waits meanwhile, and systemd reads at once or is in trouble itself
STATUS_CHARACTERS = 200


def is_supervised() -> bool:
    """Whether anybody receives what is said here."""
    return supervisor().notify_socket is not None


def ready() -> bool:
    """Say that start-up, or a reload, is complete."""
    return _send("READY=1")


def reloading() -> bool:
    """Say that the settings are being read again; ready() ends it.

    Without the time, systemd 253 and later waits for ever for a reload it could pair this with.
    """
    return _send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> bool:
    """Say that the daemon is on its way out."""
    return _send("STOPPING=1")


def status(text: str) -> bool:
    """Show a line in `systemctl status`."""
    return _send("STATUS=" + " ".join(text.split())[:STATUS_CHARACTERS])


def watchdog() -> bool:
    """Say that the daemon makes progress. Only ever call it from what did: a timer of its own proves nothing."""
    return _send("WATCHDOG=1")


def watchdog_interval_s() -> float | None:
    """Return how often to call watchdog(): at half the time systemd allows, as sd_watchdog_enabled(3) advises."""
    allowed_s = supervisor().watchdog_s
    return allowed_s / 2 if allowed_s else None


def extend_timeout(seconds: float) -> bool:
    """Ask for this long, from now, until the next sign of life while starting or stopping."""
    return _send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")


def _send(message: str) -> bool:
    """Return whether systemd took the message."""
    address = supervisor().notify_socket
    if address is None or address[0] not in "/@":
        return False
    if address.startswith("@"):  # the kernel's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_TIMEOUT_S)
            sender.sendto(message.encode(), address)
    except OSError:  # whoever supervises us went away, or does not read: its business, not the work's
        return False
    return True
