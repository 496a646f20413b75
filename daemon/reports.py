"""`recalcd report`: reads the cached tables as an application would."""

from typing import Literal
from uuid import UUID

import asyncpg

from daemon.errors import UsageError
from daemon.sql import statement
from daemon.telemetry import span

Of = Literal["student", "group", "cohort"]
REPORTS: dict[str, str] = {
    "student": statement("report_student"),
    "group": statement("report_group"),
    "cohort": statement("report_cohort"),
}
LIST_TIMEFRAMES = statement("list_timeframes")


async def read_report(connection: asyncpg.Connection, of: Of, about: UUID, timeframe: str) -> list[asyncpg.Record]:
    """Return the rows of a report; a pupil's is one row. Raises UsageError for a timeframe, pupil or group unknown."""
    timeframe_id = await _find_timeframe(connection, timeframe)
    with span(f"report.{of}", f"reports.{of}_report", timeframe_id=str(timeframe_id)) as current:
        try:
            rows = await connection.fetch(REPORTS[of], about, timeframe_id)
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "").startswith("SC"):
                raise UsageError(f"{error.args[0]}.") from None
            raise
        current.add(row_count=len(rows))
    return rows


async def _find_timeframe(connection: asyncpg.Connection, wanted: str) -> UUID:
    """Take a timeframe by its id or its name."""
    rows = await connection.fetch(LIST_TIMEFRAMES)
    for row in rows:
        if wanted in (row["name"], str(row["timeframe_id"])):
            found: UUID = row["timeframe_id"]
            return found
    raise UsageError(f"There is no timeframe {wanted!r}; there are: {', '.join(row['name'] for row in rows)}.")
