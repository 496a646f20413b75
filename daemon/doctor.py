"""`recalcd doctor`: everything that makes a deployment unsafe or slow, each with its remedy.

A check is a small function that yields complaints; it knows its one subject, and trusts nothing another found out.
"""

from collections.abc import AsyncIterator

from daemon.doctor_check import Finding, Patient
from daemon.doctor_logging import LOGGING_CHECKS
from daemon.doctor_outbox import OUTBOX_CHECKS
from daemon.doctor_schema import SCHEMA_CHECKS, has_outbox
from daemon.doctor_server import SERVER_CHECKS
from daemon.doctor_tls import TLS_CHECKS
from daemon.doctor_topics import TOPIC_CHECKS


async def examine(patient: Patient) -> AsyncIterator[Finding]:
    """Yield the findings, check by check; of a database without the outbox, only why that is bad."""
    checks = [*SERVER_CHECKS, *TLS_CHECKS, *LOGGING_CHECKS, *SCHEMA_CHECKS]
    if await has_outbox(patient.connection):
        checks += [*OUTBOX_CHECKS, *TOPIC_CHECKS]
    for check in checks:
        for finding in await check.run(patient):
            yield finding
