"""SQLSTATE in, what to do out; and the errors that end a command. Pure: no I/O, no clock.

Classes of SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from enum import Enum


class RecalcdError(Exception):
    """Ends a command. The message is for a person: what happened, then what to do."""

    exit_code = 1


class UsageError(RecalcdError):
    """The command was asked for something that can't be meant."""

    exit_code = 2


class DatabaseUnavailable(RecalcdError):
    """No connection could be made."""

    exit_code = 3


class DatabaseRefuses(DatabaseUnavailable):
    """The database, the user or the password is not accepted. At a start a wrong setting; later, a change under way."""

    exit_code = 78


class SchemaMismatch(RecalcdError):
    """The database lacks recalcd's schema, or holds that of another version."""

    exit_code = 4


class ConfigurationError(RecalcdError):
    """A setting is wrong; starting again will not help. EX_CONFIG of sysexits(3), which systemd does not restart."""

    exit_code = 78


class Blame(Enum):
    """Whose fault a failed recalculation is; decides what the daemon does next."""

    SERVER = "server"
    """The database is away, restarting, full or read-only: wait and try again, for ever; charge nobody."""

    CONTENTION = "contention"
    """Somebody else's lock or transaction: try again soon; charge nobody."""

    SIZE = "size"
    """Too much for one transaction: try again with fewer keys."""

    TOPIC = "topic"
    """The topic's procedure is missing or may not be called: leave the topic alone for a while; charge nobody."""

    SCHEMA = "schema"
    """A table, column, function or privilege is missing: for all keys of the topic, in a migration half done or after a
    revoke, or for one key that alone goes that way. Charge it once another has got through; else as TOPIC."""

    KEYS = "keys"
    """One of the keys (or the procedure, for it): find out which, and charge that one."""


FORBIDDEN = "42501"
NOTIFY_QUEUE_FULL = "54000"
"""What a commit says that notifies when the queue is full; elsewhere, that the program's own limits are exceeded."""

_BLAMES = {
    **dict.fromkeys(("40001", "40P01", "55006", "55P03"), Blame.CONTENTION),
    **dict.fromkeys(("53200", "53400"), Blame.SIZE),  # out of memory, or the lock table is full; past temp_file_limit
    **dict.fromkeys((FORBIDDEN, "3F000", "42P01", "42703", "42883"), Blame.SCHEMA),
    "25006": Blame.SERVER,  # read-only: after a failover, until the connection finds the new primary
    "RC004": Blame.TOPIC,  # raised by outbox.recalculate
}
_SERVER_CLASSES = ("08", "53", "57P", "58", "25P03", "25P04")


def blame(sqlstate: str | None) -> Blame:
    """Say whose fault an error is; None means that the connection broke without a word."""
    if sqlstate is None:
        return Blame.SERVER
    return _BLAMES.get(sqlstate, Blame.SERVER if sqlstate.startswith(_SERVER_CLASSES) else Blame.KEYS)
