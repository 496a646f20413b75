"""docs/json.md names every key that the commands print as JSON, and no other."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from daemon.doctor_check import Finding
from daemon.drift import DriftStatus
from daemon.explain import Cached, Done, Pending, explain
from daemon.failures import Failure, FailureList
from daemon.forget import Forgotten
from daemon.status import DaemonStatus, TopicStatus, read_status
from daemon.threats import Pin, Server
from daemon.topics import Entry

PAGE = (Path(__file__).parents[1] / "docs" / "json.md").read_text("utf-8")


def documented(section: str) -> set[str]:
    """Return the keys of a section: what stands in backquotes in its list."""
    (text,) = re.findall(rf"(?ms)^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE)
    return set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^- .*$", text))))


def keys(*shapes: Any) -> set[str]:
    return {each.name for shape in shapes for each in fields(shape)}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("status: topics", keys(TopicStatus) | {"events_per_recalculation"}),
        ("status: daemons", keys(DaemonStatus) | {"is_running"}),
        ("status: server", keys(Server, Pin)),
        ("status: drift", keys(DriftStatus)),
        ("explain: events", keys(Pending)),
        ("explain: batches", keys(Done)),
        ("explain: cached", keys(Cached)),
        ("failures list", keys(FailureList)),
        ("failures show", keys(Failure)),
        ("topic list", keys(Entry)),
        ("doctor", keys(Finding)),
        ("forget", keys(Forgotten)),
    ],
)
def test_the_page_names_what_is_printed(section: str, expected: set[str]) -> None:
    assert documented(section) == expected


async def test_the_page_names_what_stands_at_the_top(db: asyncpg.Connection) -> None:
    assert documented("status") == set((await read_status(db)).as_json())
    assert documented("explain") == set((await explain(db, "reports.student", "a", limit=1)).as_json())
