"""What may be written down of a text or an error: no password, and no row value from a database's DETAIL. Pure."""

import re
import textwrap
import traceback
from dataclasses import dataclass

HIDDEN = "***"
MESSAGE_CHARACTERS = 1_000  # a procedure may raise whatever it likes, as long as it likes

# user:password@ of a URI. Greedy up to the last @ of the word, since people forget to encode one in the password.
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):\S*@", re.IGNORECASE)
# password=… of a libpq keyword string or a query part; quoted values may hold blanks and escaped quotes.
_KEYWORD = re.compile(
    r"(\b(?:ssl)?(?:password|passwd|passphrase)['\"]?\s*[=:]\s*)('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&'\"]+)",
    re.IGNORECASE,
)
# What asyncpg puts behind the message when an error becomes text. DETAIL may run over lines: nothing after it is kept.
_DETAIL = re.compile(r"\s*\bDETAIL:\s.*", re.DOTALL)


def redact(text: str) -> str:
    """Return the text without passwords and without any DETAIL."""
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
    """Return the primary message only; of a database error, args[0] is it, while str() adds DETAIL and HINT."""
    sqlstate = getattr(error, "sqlstate", None)
    message = str(error.args[0]) if sqlstate and error.args else str(error)
    message = message[: 2 * MESSAGE_CHARACTERS]  # the patterns take time by the square of the length
    return ErrorFacts(sqlstate, type(error).__name__, redact(message)[:MESSAGE_CHARACTERS])


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
