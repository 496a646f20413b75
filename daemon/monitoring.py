"""What tells of the work: the log, the spans, and the metrics if RECALCD_METRICS_LISTEN asks for them."""

from typing import TYPE_CHECKING

from daemon import telemetry
from daemon.settings import Settings

if TYPE_CHECKING:
    from daemon.endpoint import Endpoint
    from daemon.metrics import Metrics


class Monitoring:
    """Of one process. What is counted survives a reload."""

    def __init__(self) -> None:
        """Nothing is set up yet."""
        self.metrics: Metrics | None = None
        self._endpoint: Endpoint | None = None
        self._address: tuple[str, int] | None = None

    def configure(self, settings: Settings) -> None:
        """Set up everything as the settings say; again on SIGHUP."""
        address = settings.metrics_address
        if address is None:
            self.metrics = None
        elif self.metrics is None:
            from daemon.metrics import Metrics  # noqa: PLC0415  # its library is an extra

            self.metrics = Metrics()
        telemetry.configure(settings, *([self.metrics] if self.metrics else []))
        if address != self._address:
            self._listen(address)

    def _listen(self, address: tuple[str, int] | None) -> None:
        if self._endpoint:
            self._endpoint.close()
        self._address, self._endpoint = address, None
        if address and self.metrics:
            from daemon.endpoint import Endpoint  # noqa: PLC0415  # likewise

            self._endpoint = Endpoint(self.metrics.registry, *address)
