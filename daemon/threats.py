"""What threatens the outbox from the side of the database: a pinned horizon, a full NOTIFY queue, vacuum behind."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import asyncpg

from daemon.database import one_row
from daemon.sql import statement

STATUS_PINS = statement("status_pins")
STATUS_SERVER = statement("status_server")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something counts as unhealthy."""

    late_s: float = 60.0
    """A claimable event has waited this long."""
    unseen_s: float = 30.0
    """A daemon that writes its row every ten seconds was not seen for this long: it is gone, or stuck."""
    dead_keys: int = 0
    """So many dead keys are accepted."""
    horizon_s: float = 300.0
    """A transaction has held the horizon for this long."""
    horizon_xids: int = 1_000_000
    """A slot or a standby, which do not say since when, has held it for so many transactions."""
    notify_queue: float = 0.25
    """The queue of notifications is this full; 1 is full, and then every transaction that notifies fails."""
    dead_rows: int = 200_000
    """outbox.event holds so many rows that vacuum should have removed: it asks for a vacuum at 2,000."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Something that holds the horizon: rows deleted since it began can't be removed."""

    kind: Literal["session", "standby", "slot", "prepared"]
    name: str
    pid: int | None
    role: str | None
    state: str | None
    age_s: float | None
    age_xids: int

    def is_threat(self, limits: Thresholds) -> bool:
        """Whether it has lasted too long."""
        return (self.age_s or 0.0) >= limits.horizon_s or (self.age_s is None and self.age_xids >= limits.horizon_xids)

    def __str__(self) -> str:
        match self.kind:
            case "slot":
                return f"the replication slot {self.name} ({self.state})"
            case "prepared":
                return f"the prepared transaction {self.name} of {self.role}"
            case "standby":
                return f"the standby {self.name} (backend {self.pid}, hot_standby_feedback)"
            case "session":
                return f"the session {self.pid} of {self.role} ({self.name}, {self.state})"

    @property
    def since(self) -> str:
        """Say for how long, in the measure that is known."""
        return f"{self.age_xids:,} transactions" if self.age_s is None else f"{self.age_s:,.0f} s"

    @property
    def remedy(self) -> str:
        """Say how to end it."""
        match self.kind:
            case "slot":
                return f"If nobody reads it any more: select pg_drop_replication_slot('{self.name}')."
            case "prepared":
                return f"Commit prepared '{self.name}', or rollback prepared '{self.name}', as whoever made it meant."
            case "standby":
                return "End the long query on the standby, or turn hot_standby_feedback off there."
            case "session":
                return (
                    f"End it: select pg_terminate_backend({self.pid}). idle_in_transaction_session_timeout "
                    "does so by itself."
                )


@dataclass(frozen=True, slots=True)
class Server:
    """The database's condition, as far as the outbox depends on it."""

    pins: list[Pin]
    """Whatever holds the horizon at this moment, the oldest first; short-lived ones are normal."""
    notify_queue_usage: float
    dead_rows: int
    live_rows: int
    vacuumed_at: datetime | None
    outbox_bytes: int

    def problems(self, limits: Thresholds) -> list[str]:
        """Say what threatens, if anything."""
        found = [
            f"{each} holds the horizon since {each.since}: deleted events can't be vacuumed"
            for each in self.pins
            if each.is_threat(limits)
        ]
        if self.notify_queue_usage >= limits.notify_queue:
            found.append(
                f"the NOTIFY queue is {self.notify_queue_usage:.0%} full: a session listens, but sits in a transaction"
            )
        if self.dead_rows >= limits.dead_rows:
            found.append(
                f"autovacuum falls behind on outbox.event: {self.dead_rows:,} dead rows, "
                + (f"last vacuumed {self.vacuumed_at:%Y-%m-%d %H:%M:%S} UTC" if self.vacuumed_at else "never vacuumed")
            )
        return found


async def read_server(connection: asyncpg.Connection) -> Server:
    """Ask the database. A role without pg_read_all_stats does not see what sessions of other roles hold."""
    pins = [Pin(**row) for row in await connection.fetch(STATUS_PINS)]
    return Server(pins, **await one_row(connection, STATUS_SERVER))
