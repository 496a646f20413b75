"""recalcd doctor on what the server logs of us."""

import re

import asyncpg
import pytest

from daemon.doctor_check import Patient
from daemon.doctor_logging import check_logging
from daemon.settings import Settings


@pytest.mark.parametrize(
    ("settings_of_session", "says"),
    [
        ({}, []),
        ({"log_statement": "ddl"}, []),
        ({"log_statement": "all"}, ["logs statements with"]),
        ({"log_min_duration_statement": "1s"}, ["logs statements with"]),
        ({"log_min_duration_sample": "1s"}, ["logs statements with"]),
        ({"log_statement": "mod", "log_parameter_max_length": "0"}, []),
        ({"log_parameter_max_length_on_error": "-1"}, ["statements that fail"]),
        ({"log_min_messages": "notice"}, []),
        ({"log_min_messages": "info"}, ["what it tells us"]),
        ({"log_min_messages": "debug2"}, ["what it tells us"]),
        ({"log_parameter_max_length_on_error": "64", "log_statement": "all"}, ["that fail", "logs statements with"]),
    ],
)
async def test_parameters_in_the_servers_log_are_a_warning(
    db: asyncpg.Connection, settings: Settings, settings_of_session: dict[str, str], says: list[str]
) -> None:
    for name, value in settings_of_session.items():
        await db.execute(f"set {name} = '{value}'")
    found = [each async for each in check_logging(Patient(db, settings))]
    assert [part in each.sentence for part, each in zip(says, found, strict=True)] == [True] * len(says)
    for each in found:
        await db.execute(re.sub(r"^As a superuser: alter role \S+ ", "", each.remedy))
    assert [each async for each in check_logging(Patient(db, settings))] == [], "the remedy is none"
