"""What doctor looks at in the outbox and around it: daemons, locks, vacuum, the horizon, notifications, the history."""

from daemon import __version__
from daemon.database import one_row
from daemon.doctor_check import Check, Complaints, Patient, error, warning
from daemon.doctor_server import DOCTOR_SERVER
from daemon.sql import statement
from daemon.status import read_status
from daemon.threats import read_server
from daemon.topics import list_topics

DOCTOR_VACUUM = statement("doctor_vacuum")
DOCTOR_HISTORY = statement("doctor_history")
VACUUM_SETTINGS = {"autovacuum_vacuum_scale_factor": 0.0, "autovacuum_vacuum_threshold": 2000.0}
"""Settings of outbox.event that its migration makes: a fixed number of dead rows, since the live ones come and go."""


async def check_daemons(patient: Patient) -> Complaints:
    """See that somebody serves the topics, with notifications, and in this release."""
    status = await read_status(patient.connection, patient.limits)
    if not status.running:
        yield error(
            "no daemon is running, so no topic is served", "Start one: recalcd run, or systemctl start recalcd."
        )
    for each in status.running:
        name = f"daemon {each.pid} on {each.host}"
        if each.state == "degraded":
            yield warning(
                f"{name} gets no notifications and polls instead",
                "Give it a direct or session-pooled connection, or set RECALCD_WAKE=poll there.",
            )
        if each.version != __version__:
            yield warning(f"{name} is of release {each.version}, this is {__version__}", "Run one release everywhere.")


async def check_locks(patient: Patient) -> Complaints:
    """Compare what batches may lock with the lock table of the server, which all sessions share."""
    server = await one_row(patient.connection, DOCTOR_SERVER)
    daemons = max(1, len((await read_status(patient.connection, patient.limits)).running))
    batch_keys = max((each.batch_keys for each in await list_topics(patient.connection)), default=0)
    needed, slots = batch_keys * patient.settings.workers * daemons, server["lock_slots"]
    if needed * 2 > slots:
        say = error if needed > slots else warning
        yield say(
            f"batches may hold {needed:,} locks ({batch_keys:,} keys, {patient.settings.workers} workers, {daemons} "
            f"daemons), and the server has room for {slots:,} of all kinds",
            f"Raise max_locks_per_transaction (now {server['max_locks_per_transaction']}), or lower batch_keys: "
            "recalcd topic set TOPIC --batch-keys N.",
        )


async def check_vacuum(patient: Patient) -> Complaints:
    """See that outbox.event will be vacuumed as it must be, and that it is."""
    server = await one_row(patient.connection, DOCTOR_SERVER)
    if not (server["autovacuum"] and server["track_counts"]):
        yield error(
            "autovacuum is off for the whole server", "alter system set autovacuum = on; and track_counts = on."
        )
    options = {row["name"]: row["value"] for row in await patient.connection.fetch(DOCTOR_VACUUM)}
    if options.get("autovacuum_enabled") in ("false", "off", "0"):
        yield error(
            "autovacuum is off for outbox.event, whose every row dies",
            "alter table outbox.event reset (autovacuum_enabled);",
        )
    for name, value in VACUUM_SETTINGS.items():
        if float(options.get(name, "nan")) != value:
            yield warning(
                f"outbox.event has {name} = {options.get(name, 'the default')} instead of {value:g}",
                f"alter table outbox.event set ({name} = {value:g});",
            )
    condition = await read_server(patient.connection)
    if condition.dead_rows >= patient.limits.dead_rows:
        yield warning(
            f"outbox.event holds {condition.dead_rows:,} dead rows",
            "vacuum outbox.event; and if they stay, see what holds the horizon.",
        )


async def check_horizon(patient: Patient) -> Complaints:
    """Name whatever keeps deleted events from being vacuumed."""
    for pin in (await read_server(patient.connection)).pins:
        if pin.is_threat(patient.limits):
            yield warning(f"{pin} holds the horizon since {pin.since}: deleted events can't be vacuumed", pin.remedy)


async def check_notifications(patient: Patient) -> Complaints:
    """See that the queue of notifications drains. When it is full, every transaction that notifies fails."""
    usage = (await read_server(patient.connection)).notify_queue_usage
    if usage >= patient.limits.notify_queue:
        yield error(
            f"the NOTIFY queue is {usage:.0%} full; at 100% the writes of the application fail",
            "Find the session that listens and sits in a transaction, and end it: "
            "select pid, query from pg_stat_activity where state = 'idle in transaction' order by xact_start.",
        )


async def check_history(patient: Patient) -> Complaints:
    """See that batches have a partition to be written to; without, none can be settled."""
    if patient.settings.history_days and not await patient.connection.fetchval(DOCTOR_HISTORY):
        yield warning(
            "outbox.batch has no partition for today",
            "Start a daemon, which makes it, or: select outbox.make_partitions(7);",
        )


OUTBOX_CHECKS = (
    Check("daemons", check_daemons, "running, listening, and of this release"),
    Check("locks", check_locks, "the lock table has room for twice the largest batches"),
    Check("autovacuum", check_vacuum, "on, eager on outbox.event, and keeping up"),
    Check("horizon", check_horizon, "nothing holds it for long"),
    Check("notifications", check_notifications, "the queue is as good as empty"),
    Check("history", check_history, "outbox.batch has a partition for today, or is switched off"),
)
