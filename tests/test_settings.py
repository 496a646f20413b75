"""Settings: where they come from, what they refuse, and that no secret leaves them."""

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from daemon.errors import ConfigurationError
from daemon.settings import Settings, describe, load, rule, supervisor, variable

SECRET = "hunter2"
ENV_EXAMPLE = Path(__file__).parents[1] / "systemd" / "recalcd.env.example"
DSN = f"postgresql://recalcd:{SECRET}@db.internal/school?sslpassword={SECRET}"


@pytest.fixture
def credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that systemd would have made of LoadCredential=database_url:…."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path / "database_url"


def origin_of(name: str, settings: Settings, *command_line: str) -> str:
    return next(each.origin for each in describe(settings, command_line) if each.variable == name)


def test_without_any_variable_the_defaults_hold() -> None:
    settings = load()
    assert settings.database_url is None
    assert (settings.workers, settings.wake, settings.history_days) == (2, "doorbell", 3)
    assert not settings.telem_enabled
    assert settings.telem_dir == Path("logs")
    assert {each.origin for each in describe(settings)} == {"default"}


def test_the_nearer_place_wins(tmp_path: Path, credential: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credential.write_text("postgresql://credential/db\n")
    assert origin_of("RECALCD_DATABASE_URL", load()) == "credential"

    file = tmp_path / "recalcd.env"
    file.write_text("RECALCD_DATABASE_URL=postgresql://file/db\nRECALCD_WORKERS=3\n# RECALCD_NOPE=1\n")
    monkeypatch.setenv("RECALCD_ENV_FILE", str(file))
    settings = load()
    assert (settings.workers, origin_of("RECALCD_WORKERS", settings)) == (3, "file")
    assert origin_of("RECALCD_DATABASE_URL", settings) == "file"

    monkeypatch.setenv("RECALCD_WORKERS", "4")
    settings = load()
    assert (settings.workers, origin_of("RECALCD_WORKERS", settings)) == (4, "environment")

    settings = load(workers=5, wake=None)
    assert (settings.workers, origin_of("RECALCD_WORKERS", settings, "workers")) == (5, "command line")
    assert settings.wake == "doorbell"


def test_the_command_line_wins_over_a_bare_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELEM_ENABLED", "true")
    assert load().telem_enabled
    assert not load(telem_enabled=False).telem_enabled


def test_the_file_is_read_again_by_every_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "recalcd.env"
    monkeypatch.setenv("RECALCD_ENV_FILE", str(file))
    file.write_text("RECALCD_LOG_LEVEL=debug\n")
    assert load().log_level == "debug"
    file.write_text("RECALCD_LOG_LEVEL=warning\n")
    assert load().log_level == "warning"


def test_a_credential_loses_its_line_end(credential: Path) -> None:
    credential.write_text(f"{DSN}\n")
    database_url = load().database_url
    assert database_url is not None
    assert database_url.get_secret_value() == DSN


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_WORKERS", "")
    monkeypatch.setenv("RECALCD_DATABASE_URL", "")
    assert load().workers == 2
    assert load().database_url is None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().workers = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("RECALCD_WROKERS", "RECALCD_WORKERS"),
        ("RECALCD_DATABASE_URI", "RECALCD_DATABASE_URL"),
        ("recalcd_pol_interval_s", "RECALCD_POLL_INTERVAL_S"),
        ("RECALCD_WAK", "RECALCD_WAKE"),
        ("RECALCD_TELEM_ENABLED", "TELEM_ENABLED"),
        ("TELEM_DIR", "RECALCD_TELEM_DIR"),
        ("TELEM_ENABLE", "TELEM_ENABLED"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_real_one(
    misspelt: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(misspelt, SECRET)
    with pytest.raises(ConfigurationError, match=rf"environment: {misspelt} \(did you mean {meant}\?\)") as caught:
        load()
    assert SECRET not in str(caught.value)
    assert caught.value.exit_code == 78


def test_a_misspelt_name_in_the_file_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "recalcd.env"
    file.write_text("RECALCD_WORKRES=3\n")
    monkeypatch.setenv("RECALCD_ENV_FILE", str(file))
    with pytest.raises(ConfigurationError, match=r"recalcd\.env: RECALCD_WORKRES \(did you mean RECALCD_WORKERS\?\)"):
        load()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("RECALCD_WORKERS", "many", "RECALCD_WORKERS is 'many', but must be a whole number from 1 to 64 (claim "),
        ("RECALCD_WORKERS", "65", "RECALCD_WORKERS is '65', but must be a whole number from 1 to 64 (claim "),
        ("RECALCD_STOP_GRACE_S", "0", "RECALCD_STOP_GRACE_S is '0', but must be a number above 0, up to 3600 ("),
        ("RECALCD_LINGER_S", "nan", "RECALCD_LINGER_S is 'nan', but must be a number from 0 to 60 ("),
        ("RECALCD_WAKE", "bell", "RECALCD_WAKE is 'bell', but must be one of doorbell, poll, always ("),
        ("TELEM_ENABLED", "perhaps", "TELEM_ENABLED is 'perhaps', but must be true or false ("),
        ("TELEM_PATH", "recalc.*", "TELEM_PATH is 'recalc.*', but must be tags without *"),
    ],
)
def test_a_bad_value_is_refused_with_its_rule(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"linger_s": 0.1, "linger_poll_s": 0.2}, "lingering ends before its first look"),
        ({"poll_interval_s": 1, "poll_only_interval_s": 2}, "that poll is all there is"),
        ({"heartbeat_s": 5, "heartbeat_timeout_s": 6}, "still waiting when the next is due"),
        ({"batch_target_s": 5, "stop_grace_s": 4}, "rolls back batches that were on time"),
    ],
)
def test_two_settings_that_contradict_each_other_are_refused_with_the_reason(
    values: dict[str, float], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load(**values)


def test_lingering_can_be_turned_off() -> None:
    assert load(linger_s=0).linger_s == 0


@pytest.mark.parametrize("value", [f"mysql://u:{SECRET}@h", f"u:{SECRET}@h", f" postgresql://u:{SECRET}@h"])
def test_a_refused_database_url_is_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_DATABASE_URL", value)
    with pytest.raises(ConfigurationError, match="must be a libpq URI that begins with postgresql://") as caught:
        load()
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "value",
    [
        f"postgresql://u:{SECRET}/1@h:5432/x",
        f"postgresql://u:{SECRET}#1@h:5432/x",
        f"postgresql://u:{SECRET}?1@h:5432/x",
        f"postgresql://u:1/{SECRET}@h/x",
        f"postgresql://u:1?{SECRET}@h/x",
        f"postgresql://u:1#{SECRET}@h/x",
        f"postgresql://u:1?a={SECRET}@h/x",
        f"postgresql://u:1@{SECRET}@h/x",
        f"postgresql://u:1[{SECRET}@h/x",
        f"postgresql://u:{SECRET}@h:65536/x",
        f"postgresql://u:{SECRET}@h,h2:port/x",
    ],
)
def test_a_database_url_that_breaks_in_the_wrong_place_is_refused_and_not_shown(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECALCD_DATABASE_URL", value)
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        load()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "postgresql:///x?host=/run/postgresql&port=5432",
        "postgresql://u@%2Frun%2Fpostgresql/x",
        "postgresql://h/x?user=u@tenant&options=-c%20work_mem%3D1MB",
        "postgresql://u:a%2Fb%23c%3F%40@[::1]:5432,h2:5433/x?sslmode=verify-full&sslrootcert=/etc/ca.crt",
    ],
)
def test_every_form_of_a_uri_is_taken(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_DATABASE_URL", value)
    assert load().database_url is not None


def test_a_database_url_in_the_wrong_variable_loses_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_WORKERS", DSN)
    with pytest.raises(ConfigurationError, match="RECALCD_WORKERS is 'postgresql://recalcd:") as caught:
        load()
    assert SECRET not in str(caught.value)


def test_the_description_hides_the_password_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_DATABASE_URL", DSN)
    settings = load()
    shown = next(each.value for each in describe(settings) if each.variable == "RECALCD_DATABASE_URL")
    assert shown == "postgresql://recalcd:***@db.internal/school?sslpassword=***"
    assert SECRET not in repr(settings) + str(settings) + repr(describe(settings))


def test_the_config_command_shows_values_origins_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_DATABASE_URL", DSN)
    arguments = ["config"]
    table = CliRunner().invoke(main, arguments)
    assert table.exit_code == 0
    assert "RECALCD_STOP_GRACE_S=20 " in table.output
    assert "RECALCD_DATABASE_URL=postgresql://recalcd:***@db.internal" in table.output
    lines = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    assert [(each["value"], each["origin"]) for each in lines if each["variable"] == "RECALCD_WORKERS"] == [
        (2, "default")
    ]
    assert lines[0]["origin"] == "environment"
    assert SECRET not in table.output + json.dumps(lines)
    given = CliRunner().invoke(main, ["--database-url", "postgresql://db.internal/school", *arguments, "--json"])
    assert json.loads(given.output)[0]["origin"] == "command line"


def test_the_config_command_ends_with_78_on_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_WORKERS", "0")
    result = CliRunner().invoke(main, ["config"])
    assert (result.exit_code, result.stdout) == (78, "")
    assert "must be a whole number from 1 to 64" in result.stderr


def test_every_setting_has_a_description_and_a_rule() -> None:
    for field, info in Settings.model_fields.items():
        assert info.description, field
        assert rule(field), field
        assert variable(field).isupper(), field


def test_a_file_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_ENV_FILE", "/nowhere/recalcd.env")
    with pytest.raises(ConfigurationError, match=r"/nowhere/recalcd\.env can't be read: No such file"):
        load()


def test_a_credential_that_cannot_be_read_is_refused(credential: Path) -> None:
    credential.mkdir()
    with pytest.raises(ConfigurationError, match="database_url can't be read: Is a directory"):
        load()


def test_a_credential_that_is_not_text_is_refused_without_its_bytes(credential: Path) -> None:
    credential.write_bytes(SECRET.encode() + b"\xff")
    with pytest.raises(ConfigurationError, match="it is not UTF-8") as caught:
        load()
    assert SECRET not in str(caught.value)


def test_a_missing_credential_is_no_error(credential: Path) -> None:
    assert not credential.exists()
    assert load().database_url is None


def test_telem_path_is_split_into_tags() -> None:
    assert load(telem_path=" recalc, replay.reports. ,, ").telem_routes == ("recalc", "replay.reports")
    assert load().telem_routes == ()


def test_the_supervisor_is_nobody_outside_systemd() -> None:
    assert supervisor().notify_socket is None
    assert supervisor().watchdog_s is None


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert supervisor().watchdog_s == 30
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert supervisor().watchdog_s == 30
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert supervisor().watchdog_s is None


def test_the_example_file_shows_real_settings_with_their_defaults() -> None:
    shown = dict(re.findall(r"^#((?:RECALCD|TELEM)_\w+)=(.*)$", ENV_EXAMPLE.read_text(), re.MULTILINE))
    defaults = {variable(field): info.default for field, info in Settings.model_fields.items()}
    assert len(shown) > 5
    for name, value in shown.items():
        assert value == str(defaults[name]).lower().removesuffix(".0"), name
