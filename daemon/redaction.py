"""What may be written down of a text or an error: no password, and no row value. Pure.

Row values are anywhere in what a database says of an error: in DETAIL, in HINT, in CONTEXT, and in the message itself
when a routine raised it, or a value could not be read. Such a message stays in outbox.failure, which operators read.
"""

import re
import textwrap
import traceback
from dataclasses import dataclass

HIDDEN = "***"
WITHHELD = "(withheld: may hold row values)"
MESSAGE_CHARACTERS = 1_000  # a procedure may raise whatever it likes, as long as it likes

# user:password@ of a URI. Greedy up to the last @ of the word, since people forget to encode one in the password.
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):\S*@", re.IGNORECASE)
# password=… of a libpq keyword string or a query part; quoted values may hold blanks and escaped quotes.
_KEYWORD = re.compile(
    r"(\b(?:ssl)?(?:password|passwd|passphrase)['\"]?\s*[=:]\s*)('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&'\"]+)",
    re.IGNORECASE,
)
# What asyncpg puts behind the message when an error becomes text. It may run over lines: nothing after it is kept.
_DETAIL = re.compile(r"\s*\b(?:DETAIL|HINT):\s.*", re.DOTALL)

# SQLSTATEs, and classes of them, whose messages name parts of the schema or the state of the server, and nothing else.
_HARMLESS = (
    *("08", "0A", "21", "23", "25", "26", "28", "2D", "34", "3B", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"),
    *("22001", "22004", "22012", "25P03", "25P04"),
)
# Those whose messages quote what could not be read: 'invalid input syntax for type uuid: "Ada Lovelace"'.
_QUOTING = ("22003", "22007", "22008", "22P02", "42601")
_QUOTED = re.compile(r"[\"'\u00ab\u00bb\u2018-\u201f\u2039\u203a\u300c-\u300f].*", re.DOTALL)  # in any language
# The innermost frame of a stack inside the database, where the server speaks English; elsewhere we know less.
_FRAME = re.compile(r"^PL/pgSQL function ((?:\w+\.)?\w+)\([^\n]*\) line (\d+) at ", re.MULTILINE)


def redact(text: str) -> str:
    """Return the text without passwords, and without any DETAIL or HINT."""
    text = _DETAIL.sub("", text)
    text = _USERINFO.sub(rf"\1:{HIDDEN}@", text)
    return _KEYWORD.sub(rf"\1{HIDDEN}", text)


@dataclass(frozen=True)
class ErrorFacts:
    """What logs and spans say about an error. sqlstate is None unless the database raised it."""

    sqlstate: str | None
    type: str
    message: str


def error_facts(error: BaseException) -> ErrorFacts:
    """Return what may be known of an error by whoever reads logs."""
    sqlstate = getattr(error, "sqlstate", None)
    is_of_database = hasattr(error, "server_source_filename")
    message = _database_message(error, sqlstate or "") if is_of_database else str(error)
    message = message[: 2 * MESSAGE_CHARACTERS]  # the patterns take time by the square of the length
    return ErrorFacts(sqlstate, type(error).__name__, redact(message)[:MESSAGE_CHARACTERS])


def _database_message(error: BaseException, sqlstate: str) -> str:
    """Return the primary message without what came from a row; str() would add DETAIL and HINT.

    What a procedural language raised (its source files begin with pl) may hold anything, whatever SQLSTATE it took;
    but for our own routines, which speak of topics, routines and keys.
    """
    message = str(error.args[0]) if error.args else ""
    frame = _FRAME.search(getattr(error, "context", None) or "")
    if (getattr(error, "server_source_filename", None) or "").startswith("pl"):
        is_ours = frame is not None and frame.start() == 0 and frame[1].startswith("outbox.")
        return message if is_ours else _withheld(frame)
    if sqlstate.startswith(_QUOTING):
        return _QUOTED.sub(HIDDEN, message)
    return message if sqlstate.startswith(_HARMLESS) else _withheld(frame)


def _withheld(frame: re.Match[str] | None) -> str:
    return WITHHELD + (f", raised in {frame[1]}, line {frame[2]}" if frame else "")


def error_trace(error: BaseException) -> str:
    """Return the error, where it was raised, and what caused it; Python's own traceback would print the DETAIL."""
    facts = error_facts(error)
    sqlstate = f" [{facts.sqlstate}]" if facts.sqlstate else ""
    lines = [f"{facts.type}{sqlstate}: {facts.message}"]
    lines += [
        f"  {frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    if isinstance(error, BaseExceptionGroup):
        lines += [textwrap.indent(error_trace(each), "  | ") for each in error.exceptions]
    if cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        lines += ["caused by " + error_trace(cause)]
    return "\n".join(lines)
