"""Where Prometheus scrapes: what the setting takes, and a port that is taken."""

import asyncio
import socket
import subprocess
import sys
from typing import Any

import pytest
from engine import events_of
from prometheus_client import start_http_server
from scrape import scrape, taken_port
from waiting import eventually

from daemon import __version__, endpoint, telemetry
from daemon.address import parse_address
from daemon.endpoint import Endpoint
from daemon.errors import ConfigurationError
from daemon.extras import need_extra
from daemon.metrics import Metrics
from daemon.settings import load


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9432", ("127.0.0.1", 9432)),
        ("0", ("127.0.0.1", 0)),
        ("10.0.0.7:9432", ("10.0.0.7", 9432)),
        ("[::1]:9432", ("::1", 9432)),
        ("10.0.0.7:65535", ("10.0.0.7", 65535)),
    ],
)
def test_a_port_alone_is_the_loopbacks(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert load(metrics_listen=text).metrics_address == address


@pytest.mark.parametrize("text", ["on", "65536", "-1", ":9432", "db:9432", "1.2.3:9432", "::1", "²", "1.2.3.4:"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"RECALCD_METRICS_LISTEN.* must be a port, .* 127\.0\.0\.1:9432"):
        load(metrics_listen=text)


@pytest.mark.parametrize(
    ("setting", "module", "extra"),
    [
        ({"metrics_listen": "9432"}, "prometheus_client", "metrics"),
        ({"otel_enabled": True}, "opentelemetry.sdk.trace", "otel"),
        ({"otel_enabled": True}, "opentelemetry.exporter.otlp.proto.http", "otel"),
    ],
)
def test_a_setting_without_its_libraries_is_refused_and_names_the_extra(
    setting: dict[str, Any], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'recalcd\[{extra}\]'"):
        load(**setting)


def test_a_library_may_be_missing_with_the_package_it_belongs_to() -> None:
    need_extra("known", "email.mime.text")
    with pytest.raises(ValueError, match="no_such"):
        need_extra("no_such", "no_such_package.part.of_it")


def test_off_by_default_and_then_no_library_is_even_imported() -> None:
    settings = load()
    assert settings.metrics_address is None
    assert not settings.otel_enabled
    script = "import sys, daemon.runner; print([m for m in ('prometheus_client', 'opentelemetry') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


async def test_a_port_that_becomes_free_is_taken(monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]) -> None:
    attempts: list[int] = []

    def start(port: int, *arguments: Any) -> Any:
        attempts.append(port)
        return start_http_server(port, *arguments)

    monkeypatch.setattr(endpoint, "RETRY_S", 0.01)
    monkeypatch.setattr(endpoint, "start_http_server", start)

    async def has_tried() -> bool:
        return len(attempts) > 3

    async def is_served() -> bool:
        return bool(events_of(logged, telemetry.METRICS_SERVED))

    with taken_port() as port:
        opened = Endpoint(Metrics().registry, "127.0.0.1", port)
        await eventually(has_tried)
    await eventually(is_served)
    assert (await scrape(port)).value("recalcd_build_info", version=__version__) == 1
    await asyncio.to_thread(opened.close)
    assert len(events_of(logged, telemetry.METRICS_UNAVAILABLE)) == 1
    socket.create_server(("127.0.0.1", port)).close()  # it is free again


async def test_an_endpoint_that_never_got_its_port_can_be_closed() -> None:
    with taken_port() as port:
        opened = Endpoint(Metrics().registry, "127.0.0.1", port)
        await asyncio.to_thread(opened.close)
        assert not opened._thread.is_alive()
