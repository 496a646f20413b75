"""Where Prometheus scrapes. A port that is taken stops nothing: it is logged, and tried again until it is free.

Ending the daemon instead would leave reports stale for the sake of their graphs; Prometheus itself tells that a target
is down.
"""

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from daemon import telemetry
from daemon.telemetry import log

RETRY_S = 10.0
CLOSE_S = 1.0


class Endpoint:
    """Serves a registry over HTTP until closed. All of it happens in threads: even binding may look up a name."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Begin to listen, or to try."""
        self._registry = registry
        self._host = host
        self._port = port
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more; the port is free afterwards."""
        self._closed.set()
        self._thread.join(CLOSE_S)

    def _serve(self) -> None:
        server = self._opened()
        if server is None:
            return
        log.info(telemetry.METRICS_SERVED, address=self._host, port=server.server_port)
        self._closed.wait()
        server.shutdown()
        server.server_close()

    def _opened(self) -> WSGIServer | None:
        """Try until it works, complaining once; None when closed meanwhile."""
        has_complained = False
        while not self._closed.is_set():
            try:
                return start_http_server(self._port, self._host, self._registry)[0]
            except OSError as error:
                if not has_complained:
                    facts = telemetry.error_keys(error)
                    log.error(telemetry.METRICS_UNAVAILABLE, address=self._host, port=self._port, **facts)
                has_complained = True
            self._closed.wait(RETRY_S)
        return None
