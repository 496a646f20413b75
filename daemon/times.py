"""Points in time as people type them: `2h` ago, or 2026-11-22T14:00. Pure."""

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_AGO = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")

Moment = datetime | timedelta
"""A point in time, or how long ago it was."""


def parse_moment(text: str) -> Moment:
    """Read `1d`, `2h`, `1h30m`, `90s` as how long ago; else a date or a time of ISO 8601, UTC unless it says otherwise.

    Raises ValueError, whose text is for people.
    """
    text = text.strip()
    if text and (match := _AGO.fullmatch(text)):
        given = dict(zip(_UNITS.values(), match.groups(), strict=True))
        return _ago({unit: int(number) for unit, number in given.items() if number})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write 2h, 1h30m or 1d (ago), or 2026-11-22T14:00 (UTC)") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def resolve(moment: Moment, now: datetime) -> datetime:
    """Return the point in time, given the time it is now. Raises ValueError before the year 1."""
    if isinstance(moment, datetime):
        return moment
    try:
        return now - moment
    except OverflowError:
        raise ValueError("that is before the beginning of our calendar") from None


def _ago(given: dict[str, int]) -> timedelta:
    try:
        return timedelta(**given)
    except OverflowError:
        raise ValueError("that is longer ago than a calendar goes back") from None
