"""The datagrams that systemd would receive, read from a socket of our own."""

import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import systemd


@pytest.fixture(params=["path", "abstract"])
def notify_socket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """Listen as systemd does, under a path and in the kernel's abstract namespace."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@recalcd-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield receiver


def test_each_message_is_one_datagram(notify_socket: socket.socket) -> None:
    sent = [
        (systemd.ready, b"READY=1"),
        (systemd.stopping, b"STOPPING=1"),
        (systemd.watchdog, b"WATCHDOG=1"),
        (lambda: systemd.extend_timeout(1.5), b"EXTEND_TIMEOUT_USEC=1500000"),
        (lambda: systemd.status("3 pending"), b"STATUS=3 pending"),
    ]
    for send, expected in sent:
        assert send()
        assert notify_socket.recv(4096) == expected


def test_reloading_carries_the_monotonic_time(notify_socket: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    assert systemd.reloading()
    first, second = notify_socket.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_cannot_smuggle_in_another_message(notify_socket: socket.socket) -> None:
    assert systemd.status("database gone\nREADY=1 " + "x" * 1000)
    message = notify_socket.recv(4096)
    assert message.startswith(b"STATUS=database gone READY=1 xxx")
    assert b"\n" not in message
    assert len(message) <= len("STATUS=") + systemd.STATUS_CHARACTERS


@pytest.mark.parametrize("address", [None, "", "/nowhere/notify", "relative", "vsock:2:1234", "@" + "x" * 200])
def test_nothing_happens_where_nobody_listens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.ready()


def test_a_receiver_that_does_not_read_is_given_up(notify_socket: socket.socket) -> None:
    sent_count = 0
    while systemd.watchdog():  # until the kernel's queue is full; then it must end instead of waiting
        sent_count += 1
    assert sent_count > 0
    assert notify_socket.recv(4096) == b"WATCHDOG=1"


def test_the_watchdog_is_fed_at_half_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval_s() == 15
    monkeypatch.delenv("WATCHDOG_USEC")
    assert systemd.watchdog_interval_s() is None
