"""Scraping a daemon as Prometheus does."""

import asyncio
import contextlib
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass
class Scrape:
    """What one scrape brought."""

    text: str
    families: dict[str, Metric]
    """By their names in the text, with the _total of counters."""

    @property
    def samples(self) -> list[Sample]:
        return [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the value of the one series with exactly these labels."""
        (value,) = [each.value for each in self.samples if each.name == name and each.labels == labels]
        return value

    def of_topics(self, name: str) -> dict[str, float]:
        """Return a metric's value per topic."""
        return {each.labels["topic"]: each.value for each in self.samples if each.name == name}


def parse(text: str) -> Scrape:
    found = {family.name: family for family in text_string_to_metric_families(text)}
    counters = {name: family for name, family in found.items() if family.type == "counter"}
    others = {name: family for name, family in found.items() if family.type != "counter"}
    return Scrape(text, others | {f"{name}_total": family for name, family in counters.items()})


async def scrape(port: int, host: str = "127.0.0.1") -> Scrape:
    def get() -> str:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
            return str(answer.read(), "utf-8")

    return parse(await asyncio.to_thread(get))


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """Hold a port while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]
