"""The log and the spans: their form, what they leave out, and that losing them stops nothing."""

import errno
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog

from daemon import spans, telemetry
from daemon.redaction import MESSAGE_CHARACTERS, error_facts, error_trace, redact
from daemon.settings import Settings
from daemon.spans import RETRY_S, SpanFile

SECRET = "hunter2"
PUPIL = "Ada Lovelace"
STARTED_AT = datetime(2026, 11, 22, 17, 46, 12, 123456, tzinfo=UTC)


@pytest.fixture(autouse=True)
def restored_telemetry() -> Iterator[None]:
    """Put back what configure() changes for the whole process."""
    handlers, hook = list(logging.getLogger().handlers), sys.excepthook
    yield
    telemetry.configure(Settings(telem_enabled=False))
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers
    sys.excepthook = hook


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def configure(folder: Path) -> Callable[..., None]:
    def configure(**settings: Any) -> None:
        given: dict[str, Any] = {
            "telem_enabled": True,
            "telem_path": "",
            "telem_dir": folder,
            "log_format": "json",
        } | settings
        telemetry.configure(Settings(**given))

    return configure


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def spans_in(folder: Path) -> list[dict[str, Any]]:
    return [line for file in sorted(folder.iterdir()) for line in lines_of(file.read_text())]


def database_error() -> asyncpg.PostgresError:
    error = asyncpg.UniqueViolationError('duplicate key value violates unique constraint "student_pkey"')
    error.detail = f"Key (full_name)=({PUPIL}) already exists."
    error.hint = "Think."
    return error


# --- redaction ---


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://recalcd:{SECRET}@db/school",
        f"cannot reach postgres://recalcd:{SECRET}@db:5432,other:5433/school?sslmode=require now",
        f"postgresql://recalcd:p@ss/{SECRET}@db/school",
        f"postgresql://db/school?user=u&password={SECRET}&sslmode=require",
        f"host=db password={SECRET} user=u",
        f"host=db password = 'a \\' {SECRET}' user=u",
        f'{{"password": "{SECRET}"}}',
        f"PGPASSWORD: {SECRET}".replace("PG", ""),
        f"sslpassword={SECRET}",
        f"duplicate key\nDETAIL:  Key (name)=(x)\nand {SECRET}\nHINT:  none",
    ],
)
def test_secrets_are_taken_out_of_any_text(text: str) -> None:
    assert SECRET not in redact(text)


@pytest.mark.parametrize(
    "text",
    ["postgresql://recalcd@db/school", "see https://example.org:443/a?b=c", "the password is wrong", "12:30 me@x.org"],
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_what_surrounds_a_password_stays() -> None:
    assert redact(f"postgresql://u:{SECRET}@db/x?password={SECRET}&a=b") == "postgresql://u:***@db/x?password=***&a=b"


def test_an_error_of_the_database_keeps_its_primary_message_only() -> None:
    facts = error_facts(database_error())
    assert facts.sqlstate == "23505"
    assert facts.type == "UniqueViolationError"
    assert facts.message == 'duplicate key value violates unique constraint "student_pkey"'


def test_a_hint_is_not_part_of_the_message() -> None:
    error = asyncpg.DivisionByZeroError("division by zero")
    error.hint = f"ask {PUPIL}"
    assert error_facts(error).message == "division by zero"
    assert PUPIL not in error_facts(RuntimeError(f"could not: {error}")).message


def test_an_error_that_quotes_another_loses_the_detail() -> None:
    facts = error_facts(RuntimeError(f"could not: {database_error()}"))
    assert facts.sqlstate is None
    assert facts.message == 'could not: duplicate key value violates unique constraint "student_pkey"'


def test_an_endless_message_is_cut() -> None:
    assert len(error_facts(ValueError("x" * 100_000)).message) == MESSAGE_CHARACTERS


def test_a_trace_names_places_and_causes_but_no_row() -> None:
    def fail() -> None:
        raise database_error()

    def wrap() -> None:
        try:
            fail()
        except asyncpg.PostgresError as error:
            message = "batch failed"
            raise ExceptionGroup(message, [error, ValueError("other")]) from error

    with pytest.raises(ExceptionGroup) as caught:
        wrap()
    trace = error_trace(caught.value)
    assert "ExceptionGroup: batch failed" in trace
    assert "  | UniqueViolationError [23505]: duplicate key" in trace
    assert "caused by UniqueViolationError [23505]" in trace
    assert re.search(r"test_telemetry\.py:\d+ in fail", trace)
    assert PUPIL not in trace


# --- the log ---


def test_a_line_of_the_log_is_json_on_stderr(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure()
    telemetry.log.info(telemetry.BATCH_COMMITTED, topic="reports.student", key_count=17, recalculate_ms=84.2)
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = lines_of(captured.err)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["event"] == "batch.committed"
    assert line["key_count"] == 17
    assert line["timestamp"].endswith("Z")


def test_the_log_is_text_where_it_is_asked_for(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure(log_format="text")
    telemetry.log.info(telemetry.DAEMON_STARTED, workers=2)
    line = capsys.readouterr().err
    assert "daemon.started" in line
    assert "workers=2" in line
    assert "\x1b" not in line  # colours are for terminals


def test_the_level_decides_what_is_logged_and_a_reload_changes_it(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    bound = telemetry.log.bind(daemon_id=7)
    configure(log_level="warning")
    bound.info(telemetry.DAEMON_STARTED)
    assert capsys.readouterr().err == ""
    configure(log_level="debug")
    telemetry.log.debug(telemetry.DOORBELL_ARMED)
    assert lines_of(capsys.readouterr().err)[0]["event"] == "doorbell.armed"


def test_no_secret_passes_through_the_log(configure: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    telemetry.log.warning(
        telemetry.LISTENER_LOST,
        dsn=SECRET,
        url=f"postgresql://u:{SECRET}@db/x",
        nested={"tried": [f"password={SECRET}"]},
        raised=ValueError(f"postgresql://u:{SECRET}@db/x"),
    )
    assert SECRET not in capsys.readouterr().err


def test_a_logged_exception_carries_sqlstate_and_place_but_no_row(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure()
    try:
        raise database_error()
    except asyncpg.PostgresError:
        telemetry.log.exception(telemetry.BATCH_FAILED, will_retry=True)
    captured = capsys.readouterr().err
    (line,) = lines_of(captured)
    assert (line["sqlstate"], line["error_type"], line["will_retry"]) == ("23505", "UniqueViolationError", True)
    assert "test_telemetry.py" in line["exception"]
    assert PUPIL not in captured


def test_what_libraries_log_becomes_a_line_of_ours(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure()
    configure()  # a reload must not double the lines
    logging.getLogger("asyncio").warning("slow callback: %s", f"password={SECRET}")
    logging.getLogger("asyncio").info("nothing")
    (line,) = lines_of(capsys.readouterr().err)
    assert (line["event"], line["logger"]) == ("library.logged", "asyncio")
    assert line["text"] == "slow callback: password=***"


def test_a_crash_becomes_a_line_without_a_row(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    configure()
    error = database_error()
    sys.excepthook(type(error), error, None)
    captured = capsys.readouterr().err
    assert lines_of(captured)[0]["event"] == "process.crashed"
    assert PUPIL not in captured


def test_ctrl_c_is_no_crash(configure: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert "process.crashed" not in capsys.readouterr().err


def test_colours_are_for_terminals_whose_user_wants_them(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for no_color, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        configure(log_format="auto")
        telemetry.log.info(telemetry.DAEMON_STARTED)
        assert ("\x1b[" in capsys.readouterr().err) is coloured


def test_a_dead_stderr_stops_nothing(configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    configure()
    telemetry.log.error(telemetry.BATCH_FAILED)


def test_every_event_name_is_a_noun_and_a_verb_and_used_once() -> None:
    constants = {name: value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str)}
    constants.pop("HIDDEN")
    names = list(constants.values())
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", name) for name in names)


# --- spans ---


def test_a_span_is_one_line_with_every_field(configure: Callable[..., None], folder: Path) -> None:
    configure()
    with telemetry.span("recalc.reports.student", "outbox.recalculate", key_count=17) as span:
        span.add(changed_count=16)
    (line,) = spans_in(folder)
    assert list(line) == ["timestamp", "route", "function", "params", "status", "duration_ms", "error"]
    assert line["route"] == "recalc.reports.student"
    assert line["function"] == "outbox.recalculate"
    assert line["params"] == {"key_count": 17, "changed_count": 16}
    assert (line["status"], line["error"]) == ("ok", None)
    assert line["duration_ms"] >= 0
    assert datetime.fromisoformat(line["timestamp"]).tzinfo == UTC


def test_a_span_that_fails_says_how_and_lets_the_error_pass(configure: Callable[..., None], folder: Path) -> None:
    configure()
    with pytest.raises(asyncpg.UniqueViolationError), telemetry.span("recalc", "f", url=f"postgres://u:{SECRET}@h"):
        raise database_error()
    (line,) = spans_in(folder)
    assert line["status"] == "error"
    assert line["error"] == {
        "sqlstate": "23505",
        "type": "UniqueViolationError",
        "message": 'duplicate key value violates unique constraint "student_pkey"',
    }
    assert line["params"] == {"url": "postgres://u:***@h"}


def test_disabled_telemetry_makes_no_file_and_no_folder(configure: Callable[..., None], folder: Path) -> None:
    configure(telem_enabled=False)
    with telemetry.span("recalc", "f") as span:
        span.add(key_count=1)
    assert not folder.exists()


def test_enabled_telemetry_makes_no_file_before_the_first_span(configure: Callable[..., None], folder: Path) -> None:
    configure()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        ("", ["recalc", "recalc.reports", "recalc.reports.student", "recalculate", "replay"]),
        ("recalc", ["recalc", "recalc.reports", "recalc.reports.student"]),
        ("recalc.reports", ["recalc.reports", "recalc.reports.student"]),
        ("replay, recalc.reports.student", ["recalc.reports.student", "replay"]),
        ("verify", []),
    ],
)
def test_tags_match_as_prefixes_that_end_at_a_dot(
    tags: str, kept: list[str], configure: Callable[..., None], folder: Path
) -> None:
    configure(telem_path=tags)
    for route in ["recalc", "recalc.reports", "recalc.reports.student", "recalculate", "replay"]:
        with telemetry.span(route, "f"):
            pass
    assert ([line["route"] for line in spans_in(folder)] if folder.exists() else []) == kept


def test_a_reload_keeps_the_file_and_takes_the_new_tags(configure: Callable[..., None], folder: Path) -> None:
    configure(telem_path="recalc")
    with telemetry.span("recalc", "f"):
        pass
    configure(telem_path="replay")
    for route in ("recalc", "replay"):
        with telemetry.span(route, "f"):
            pass
    assert len(list(folder.iterdir())) == 1
    assert [line["route"] for line in spans_in(folder)] == ["recalc", "replay"]


def test_an_unwritable_folder_is_told_once_and_stops_nothing(
    configure: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_text("a file where the folder should be")
    configure()
    for _ in range(3):
        with telemetry.span("recalc", "f"):
            pass
    (line,) = lines_of(capsys.readouterr().err)
    assert (line["event"], line["level"], line["error_type"]) == ("telemetry.failed", "warning", "FileExistsError")
    assert line["folder"] == str(folder)


def test_telemetry_that_works_again_says_how_many_lines_were_lost(
    configure: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "RETRY_S", 0.0)
    folder.write_text("in the way")
    configure()
    with telemetry.span("recalc", "f"):
        pass
    folder.unlink()
    with telemetry.span("recalc", "f"):
        pass
    failed, resumed = lines_of(capsys.readouterr().err)
    assert (failed["event"], resumed["event"], resumed["lost_count"]) == ("telemetry.failed", "telemetry.resumed", 1)
    assert len(spans_in(folder)) == 1


class Watched:
    """A span file whose clock and news are in the test's hands."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.failures: list[OSError] = []
        self.lost_counts: list[int] = []
        self.file = SpanFile(
            folder,
            started_at=STARTED_AT,
            failed=self.failures.append,
            resumed=self.lost_counts.append,
            clock=lambda: self.now,
        )


@pytest.fixture
def watched(folder: Path) -> Iterator[Watched]:
    watched = Watched(folder)
    yield watched
    watched.file.close()


def test_the_file_is_named_after_the_start_in_utc_without_colons(watched: Watched, folder: Path) -> None:
    watched.file.write("{}")
    assert [each.name for each in folder.iterdir()] == ["telem_20261122T174612.123456Z.log"]


def test_two_processes_that_start_in_one_instant_write_two_files(watched: Watched, folder: Path) -> None:
    other = Watched(folder)
    watched.file.write('"first"')
    other.file.write('"second"')
    other.file.close()
    assert sorted(each.name for each in folder.iterdir()) == [
        "telem_20261122T174612.123456Z.log",
        "telem_20261122T174612.123457Z.log",
    ]
    assert sorted(each.read_text() for each in folder.iterdir()) == ['"first"\n', '"second"\n']


def test_others_cannot_read_the_file(watched: Watched, folder: Path) -> None:
    watched.file.write("{}")
    assert next(folder.iterdir()).stat().st_mode & 0o007 == 0


def test_a_file_that_was_rotated_is_left_and_one_of_the_same_name_begun(watched: Watched, folder: Path) -> None:
    watched.file.write("1")
    path = next(folder.iterdir())
    path.rename(folder / "rotated")
    watched.file.write("2")
    watched.file.write("3")
    assert ((folder / "rotated").read_text(), path.read_text()) == ("1\n", "2\n3\n")
    path.unlink()
    watched.file.write("4")
    assert path.read_text() == "4\n"
    assert watched.failures == []


def test_after_a_failure_it_tries_again_later_and_tells_how_many_were_lost(watched: Watched, folder: Path) -> None:
    folder.write_text("in the way")
    watched.file.write("1")
    folder.unlink()
    watched.now = RETRY_S - 1
    watched.file.write("2")  # too early for another try
    assert not folder.exists()
    watched.now = RETRY_S
    watched.file.write("3")
    assert len(watched.failures) == 1
    assert watched.lost_counts == [2]
    assert next(folder.iterdir()).read_text() == "3\n"


def test_an_outage_that_lasts_is_told_once(watched: Watched, folder: Path) -> None:
    folder.write_text("in the way")
    for attempt in range(3):
        watched.now = attempt * RETRY_S
        watched.file.write("{}")
    assert len(watched.failures) == 1
    assert watched.lost_counts == []


def test_a_disk_that_fills_up_mid_line_costs_that_line_only(
    watched: Watched, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_write = os.write
    watched.file.write('"before"')
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: whole_write(file, data[:4]))
        watched.file.write('"torn"')
    assert [error.errno for error in watched.failures] == [errno.ENOSPC]
    watched.now = RETRY_S
    watched.file.write('"after"')
    assert next(folder.iterdir()).read_text() == '"before"\n"tor\n"after"\n'
    assert watched.lost_counts == [1]


def test_a_really_full_disk_stops_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched.file, "_path", Path("/dev/full"))
    watched.file.write("{}")
    assert [error.errno for error in watched.failures] == [errno.ENOSPC]
