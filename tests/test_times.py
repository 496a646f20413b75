"""Points in time, as people type them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from daemon.times import parse_moment, resolve

NOW = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("2h", timedelta(hours=2)),
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("1d", timedelta(days=1)),
        ("2w1d", timedelta(days=15)),
        (" 5m ", timedelta(minutes=5)),
        ("0s", timedelta()),
    ],
)
def test_a_duration_is_how_long_ago(text: str, ago: timedelta) -> None:
    assert parse_moment(text) == ago
    assert resolve(parse_moment(text), NOW) == NOW - ago


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T14:00", NOW),
        ("2026-11-22 14:00:00", NOW),
        ("2026-11-22T14:00Z", NOW),
        ("2026-11-22T15:00+01:00", datetime(2026, 11, 22, 15, 0, tzinfo=timezone(timedelta(hours=1)))),
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
    ],
)
def test_an_absolute_time_is_utc_unless_it_says_otherwise(text: str, moment: datetime) -> None:
    assert resolve(parse_moment(text), NOW) == moment


@pytest.mark.parametrize(
    "text", ["", " ", "yesterday", "2", "h", "-2h", "2 h", "2h ago", "30m1h", "2026-13-01", "1.5h"]
)
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no time; write 2h"):
        parse_moment(text)


def test_before_the_calendar_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="calendar"):
        parse_moment("99999999999d")
    with pytest.raises(ValueError, match="calendar"):
        resolve(parse_moment("999999d"), NOW)
