"""docs/monitoring and docs/runbook.md fit each other, the daemon's metrics, its commands and its log."""

import json
import re
from pathlib import Path
from typing import Any

import asyncpg
import click
import pytest
from prometheus_client import generate_latest
from promtool import need_promtool, promtool
from scrape import parse

from cli import main
from daemon import telemetry
from daemon.metrics import Metrics
from daemon.settings import Settings, variable
from daemon.threats import Thresholds

DOCS = Path(__file__).parents[1] / "docs"
MONITORING = DOCS / "monitoring"
ALERTS = (MONITORING / "alerts.yml").read_text("utf-8")
ALERT_TESTS = (MONITORING / "alerts_test.yml").read_text("utf-8")
RUNBOOK = (DOCS / "runbook.md").read_text("utf-8")
README = (MONITORING / "README.md").read_text("utf-8")
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana.json").read_text("utf-8"))

RULES = dict(re.findall(r"(?s)- alert: (\w+)\n(.*?)(?=\n\n|\Z)", ALERTS))


def metrics_in(text: str) -> set[str]:
    """Return the metrics that a text names, histograms without their suffix."""
    named = set(re.findall(r"\b(?:recalcd|process)_[a-z_]+", text))
    return {re.sub(r"(_seconds)_(?:bucket|sum|count)$", r"\1", name) for name in named}


def exprs() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture
async def told(db: asyncpg.Connection) -> set[str]:
    """Return the names of all metrics there are."""
    metrics = Metrics()
    await metrics.read(db)
    return set(parse(generate_latest(metrics.registry).decode()).families)


async def test_every_metric_of_the_dashboard_and_the_alerts_exists(told: set[str]) -> None:
    shown, watched = metrics_in(" ".join(exprs())), metrics_in(ALERTS)
    assert len(shown) > 15
    assert len(watched) > 8
    assert shown - told == set()
    assert watched - told == set()
    assert metrics_in(ALERT_TESTS) - told == set()


async def test_the_readme_lists_every_metric_and_no_other(told: set[str]) -> None:
    listed = metrics_in("\n".join(line for line in README.splitlines() if line.startswith("| `")))
    assert {name for name in listed if name.startswith("recalcd_")} == {n for n in told if n.startswith("recalcd_")}
    assert listed - told == set()
    assert metrics_in(RUNBOOK) - told == set()


async def test_the_dashboard_shows_every_metric(told: set[str]) -> None:
    ours = {name for name in told if name.startswith("recalcd_")}
    assert ours - metrics_in(" ".join(exprs())) == set()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    variables = {each["name"]: each["type"] for each in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "topic": "query"}
    panels = DASHBOARD["panels"]
    sources = [each["datasource"]["uid"] for panel in panels for each in (panel, *panel["targets"])]
    assert set(sources) == {"${datasource}"}
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(cells)) == len(cells)  # no panel lies on another
    assert max(x for x, _ in cells) < 24


def test_every_alert_has_a_section_of_the_runbook_and_the_other_way_round() -> None:
    sections = re.findall(r"^## (Recalcd\w+)$", RUNBOOK, re.MULTILINE)
    assert len(RULES) > 10
    assert sorted(sections) == sorted(RULES)
    for name, rule in RULES.items():
        assert f"runbook: docs/runbook.md#{name.lower()}\n" in rule + "\n"
        section = RUNBOOK.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert re.findall(r"^\*\*([A-Z][a-z ]+)\.\*\*", section, re.MULTILINE) == ["Meaning", "First look", "Remedy"]


def test_the_alerts_judge_as_status_does() -> None:
    limits = Thresholds()
    for alert, limit in {
        "RecalcdReportsLate": limits.late_s,
        "RecalcdDeadKeys": limits.dead_keys,
        "RecalcdHorizonHeld": limits.horizon_s,
        "RecalcdNotifyQueueFills": limits.notify_queue,
        "RecalcdVacuumBehind": limits.dead_rows,
    }.items():
        assert f"> {limit:g}" in RULES[alert].replace(f"> {limits.horizon_xids}", ""), alert
    assert f"> {limits.horizon_xids}" in RULES["RecalcdHorizonHeld"]


def test_every_alert_is_tested_to_fire_and_to_stay_silent() -> None:
    tested = re.findall(r"alertname: (\w+)\n +exp_alerts:( \[\])?", ALERT_TESTS)
    assert {name for name, silent in tested if silent} == set(RULES)
    assert {name for name, silent in tested if not silent} == set(RULES)


@pytest.mark.own_server
@pytest.mark.parametrize(("action", "file"), [("check", "alerts.yml"), ("test", "alerts_test.yml")])
def test_promtool_finds_the_rules_sound(action: str, file: str) -> None:
    need_promtool()
    exit_code, said = promtool(action, "rules", str(MONITORING / file))
    assert exit_code == 0, said


@pytest.mark.own_server
def test_promtool_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    need_promtool()
    filled = [each.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$topic", ".*") for each in exprs()]
    rules = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(filled)]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    exit_code, said = promtool("check", "rules", str(file))
    assert exit_code == 0, said
    assert f"{len(rules)} rules found" in said


def option_names(command: click.Command) -> set[str]:
    return {option for each in command.params for option in each.opts}


@pytest.mark.parametrize("text", [RUNBOOK, README], ids=["runbook", "readme"])
def test_every_command_that_is_named_exists_and_takes_these_options(text: str) -> None:
    named = re.findall(r"(?:`|\$ |bin/)recalcd ([a-z][^`\n#]*)", text)
    assert named
    for line in named:
        words = line.split()
        command: click.Command = main
        while words and isinstance(command, click.Group) and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        assert {word for word in words if word.startswith("--")} <= option_names(command), line


@pytest.mark.parametrize("text", [RUNBOOK, README], ids=["runbook", "readme"])
def test_every_event_and_setting_that_is_named_exists(text: str) -> None:
    events = {
        value for value in vars(telemetry).values() if isinstance(value, str) and re.fullmatch(r"\w+\.\w+", value)
    }
    named = set(re.findall(r'`([a-z]+\.[a-z_]+)`|"event": "([a-z.]+)"', text))
    kinds = {each.split(".")[0] for each in events}
    found = {one or other for one, other in named if (one or other).split(".")[0] in kinds - {"outbox", "recalcd"}}
    assert found
    assert found - events == set()
    settings = {variable(field) for field in Settings.model_fields}
    assert set(re.findall(r"\b(?:RECALCD|TELEM)_[A-Z_]+[A-Z]\b", text)) - settings == set()
