"""The systemd units and what is installed with them, as far as they can be judged without a booted systemd.

tests/systemd/run boots one, and installs, starts, wedges and stops them for real.
"""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon import pulse, runner
from daemon.errors import ConfigurationError, DatabaseRefuses, UsageError
from daemon.settings import Settings

FOLDER = Path(__file__).parents[1] / "systemd"
UNITS = ("recalcd.service", "recalcd@.service")
EXPOSURE = 15
"""Of 100; systemd-analyze prints a tenth of it."""


def directives(name: str) -> list[tuple[str, str]]:
    lines = (line for line in (FOLDER / name).read_text("utf-8").splitlines() if re.match(r"\w+=", line))
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def value(name: str, key: str) -> str:
    (found,) = (each for each_key, each in directives(name) if each_key == key)
    return found


def seconds(text: str) -> float:
    return float(text)


def test_an_instance_is_the_plain_service_but_for_its_names() -> None:
    plain, instance = (directives(name) for name in UNITS)
    different = {key for (key, one), (_, other) in zip(plain, instance, strict=True) if one != other}
    assert different == {
        "Description",
        "Environment",
        "LoadCredential",
        "LogsDirectory",
        "StateDirectory",
        "WorkingDirectory",
    }
    named = [(key, each.replace("/%i", "").replace("-%i", "").replace(" for %i", "")) for key, each in instance]
    assert named == plain


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt install systemd")
@pytest.mark.parametrize("name", UNITS)
def test_the_exposure_is_low(name: str) -> None:
    options = ["--offline=yes", f"--threshold={EXPOSURE}", "--no-pager"]
    command = ["systemd-analyze", "security", *options, str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "--offline" in done.stderr:
        pytest.skip("needs systemd 250 or later")
    assert done.returncode == 0, done.stdout[-500:]


def test_no_restart_for_what_a_restart_cannot_cure() -> None:
    codes = {int(code) for code in value("recalcd.service", "RestartPreventExitStatus").split()}
    missing_credential = 243
    assert codes == {
        missing_credential,
        UsageError.exit_code,
        ConfigurationError.exit_code,
        DatabaseRefuses.exit_code,
    }


def test_a_stop_has_time_for_the_grace_period_and_a_start_for_its_patience() -> None:
    defaults = Settings()
    assert seconds(value("recalcd.service", "TimeoutStopSec")) >= defaults.stop_grace_s + runner.PARTING_S
    assert seconds(value("recalcd.service", "TimeoutStartSec")) == runner.PATIENCE_S


def test_there_is_a_watchdog_that_waits_longer_than_an_interval() -> None:
    assert seconds(value("recalcd.service", "WatchdogSec")) == 30  # docs/deploy.md says so


def test_the_unit_says_how_soon_a_loop_is_overdue() -> None:
    assert 60 < pulse.step_s(Settings()) <= 75, "recalcd.service speaks of a bit more than a minute"


def test_the_example_of_the_settings_names_real_ones_and_their_defaults() -> None:
    text = "[all]\n" + re.sub(r"(?m)^#(?=\w+=)", "", (FOLDER / "recalcd.env.example").read_text("utf-8"))
    parser = configparser.ConfigParser(comment_prefixes="#", delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names in capitals
    parser.read_string(text)
    given = {name.removeprefix("RECALCD_").lower(): each for name, each in parser["all"].items()}
    assert len(given) >= 8
    assert Settings.model_validate(given) == Settings()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck: apt install shellcheck")
def test_the_shell_scripts_are_sound() -> None:
    scripts = [FOLDER / "install", FOLDER / "recalcdctl", *(Path(__file__).parent / "systemd").glob("*")]
    shells = [each for each in scripts if each.read_bytes().startswith(b"#!") and b"sh" in each.read_bytes()[:30]]
    done = subprocess.run(["shellcheck", *shells], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
