"""What becomes of the benchmarks' measurements: files, pictures and a page; the measuring itself is no test."""

import json
import re
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import click
import pytest

from benchmarks import growth, hands, machine, pace, plot, rivals
from benchmarks.__main__ import AT_LENGTH, PARTS, _keep, _parts, _run
from benchmarks.figures import Part, Report, Row, Series, Verdict, interleaved
from benchmarks.process import DaemonFailed
from benchmarks.rivals import graphile_worker, pgq, plain
from benchmarks.rivals.system import RECALCD

MACHINE = {"cpu": "a processor", "cores": "2", "memory": "8 GB", "postgres": "18.4"}
COMMAND = "python -m benchmarks saturation --rounds 3"


def series(*values: float, unit: str = "events/s") -> Series:
    return Series.of(unit, values)


@pytest.fixture
def report() -> dict[str, Any]:
    """Report a contest and a growth, as a run does."""
    sides = {"recalcd": 150_000, "PgQueuer, dedupe_key": 1_500}
    contest = Part(
        "saturation",
        "How long?",
        "As it is.",
        [Row(f"uniform, 1,000,000, {name}", {"events_per_s": series(speed)}) for name, speed in sides.items()],
        [Verdict("recalcd / best", series(100, unit="x"), ">", 200)],
    )
    grown = [Row("10 / 1", {"events_per_s": series(0.5, unit="x")})]
    grown += [Row(size, {"events_per_s": series(9), "batches": series(1, unit="")}) for size in ("1", "1,000")]
    return Report(MACHINE, COMMAND, [contest, Part("growth-topics", "What changes?", "So.", grown)]).as_dict()


def test_the_sides_of_a_contest_share_a_picture_per_case(report: dict[str, Any]) -> None:
    pictures = plot.pictures_of(report["parts"][0])
    assert list(pictures) == ["saturation-uniform-1000000-events-per-s"]
    [(case, figure, sides)] = pictures.values()
    assert (case, figure) == ("uniform, 1,000,000", "events_per_s")
    assert {name: each["median"] for name, each in sides.items()} == {"recalcd": 150_000, "PgQueuer, dedupe_key": 1_500}


def test_what_grows_is_drawn_per_figure_along_its_sizes_and_ratios_are_left_out(report: dict[str, Any]) -> None:
    pictures = plot.pictures_of(report["parts"][1])
    assert list(pictures) == ["growth-topics-events-per-s"]
    assert list(pictures["growth-topics-events-per-s"][2]) == ["1", "1,000"]


def test_the_page_tells_the_command_the_machine_and_the_targets_that_were_missed(
    report: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "one.json").write_text(json.dumps(report), "utf-8")
    plot.write_readme(tmp_path)
    page = (tmp_path / "README.md").read_text("utf-8")
    assert f"    {COMMAND}\n" in page
    assert "- cpu: a processor\n" in page
    assert "| recalcd / best | > 200 x | 100 | 100 to 100 | **missed** |" in page
    assert "(saturation-uniform-1000000-events-per-s.png)" in page


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    with pytest.raises(click.UsageError, match=r"recalcd\[bench\]"):
        plot.require_matplotlib()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason=plot.HOW_TO_INSTALL)
def test_keeping_writes_a_file_a_part_its_pictures_and_the_page(report: dict[str, Any], tmp_path: Path) -> None:
    plot.keep(report, tmp_path / "new")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "README.md",
        "growth-topics-events-per-s.png",
        "growth-topics.json",
        "saturation-uniform-1000000-events-per-s.png",
        "saturation.json",
    ]
    assert json.loads((tmp_path / "new" / "saturation.json").read_text())["parts"] == report["parts"][:1]


def test_growth_means_every_axis_and_no_name_means_every_short_part() -> None:
    assert _parts(["engine", "growth"]) == ["engine", *growth.AXES]
    assert _parts([]) == list(PARTS)
    assert set(_parts(["growth"])) <= AT_LENGTH.keys()
    assert sorted(_parts(["all"])) == sorted([*PARTS, *AT_LENGTH])


def test_a_rival_that_is_unknown_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(click.UsageError, match=r"No rival is called 'kafka'. There are: .*synchronous; materialized"):
        rivals.require(["VIEW", "kafka"])
    assert rivals.available(rivals.SYSTEMS, ["VIEW"]) == (rivals.plain.MATERIALIZED_VIEW,)


def test_rivals_are_chosen_by_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "can_run", lambda _: True)
    assert rivals.available(rivals.SYSTEMS, ["pgq"]) == (pgq.COALESCING,)
    chosen = [each.name for each in rivals.available(rivals.SYSTEMS, ["PgQueuer"])]
    assert chosen == ["PgQueuer", "PgQueuer, dedupe_key"]


def test_a_queue_is_tried_once_with_each_number_of_hands_and_first_with_its_own() -> None:
    tried = [(each.processes, each.connections) for each in hands.variants(graphile_worker.PLAIN)]
    assert tried[0] == (graphile_worker.PLAIN.processes, graphile_worker.PLAIN.connections)
    assert sorted(tried[1:]) == sorted(product(hands.PROCESSES, hands.CONNECTIONS))


async def test_a_part_is_kept_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "all.json"
    monkeypatch.setattr(machine, "facts", AsyncMock(return_value=MACHINE))
    monkeypatch.setitem(PARTS, "burst", AsyncMock(return_value=Part("burst", "How?", "So.", [])))
    monkeypatch.setitem(PARTS, "wake", AsyncMock(side_effect=DaemonFailed))
    with pytest.raises(DaemonFailed):
        await _run(MagicMock(), ["burst", "wake"], partial(_keep, file, None))
    assert [part["name"] for part in json.loads(file.read_text())["parts"]] == ["burst"]


async def test_a_turn_is_told_of_where_no_bar_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert await interleaved("contest", 2, {"a side": AsyncMock(return_value=1)}) == {"a side": [1, 1]}
    assert re.findall(r"contest (\d)/2: [\d.]+ s, a side\n", capsys.readouterr().err) == ["1", "2"]


BACKLOGS = {
    pace.ONE_EACH: pace.Backlog(["a", "b"] * 5),
    pace.CLEAN: pace.Backlog(["a", "b"] * 5, leaves_reports_stale=False),
    pace.ALL_PUPILS: pace.Backlog(["a", "b"] * 50),
    ("uniform", 1_000_000): pace.Backlog(["a"] * 99 + ["b"] + ["a"] * 100),
}


def test_a_queue_of_jobs_is_true_once_each_pupil_had_one_and_done_much_later() -> None:
    speeds = {pace.ONE_EACH: series(2), pace.CLEAN: series(10)}
    found = pace.outcome(graphile_worker.PLAIN, ("uniform", 1_000_000), BACKLOGS, speeds)
    first, until_true, rest = 2 / 2, 98 / 10, 100 / 10
    assert found.true_after.median == pytest.approx(first + until_true)
    assert found.events_per_s.median == pytest.approx(200 / (first + until_true + rest))


def test_a_queue_with_a_job_a_pupil_takes_as_long_whatever_the_events() -> None:
    pupils_per_s = 4
    speeds = {pace.ALL_PUPILS: series(pupils_per_s * 100 / 2)}
    found = pace.outcome(graphile_worker.DEDUPED, ("uniform", 1_000_000), BACKLOGS, speeds)
    assert found.true_after.median == pytest.approx(2 / pupils_per_s)
    assert found.events_per_s.median == pytest.approx(200 / (2 / pupils_per_s))


def test_who_does_everything_again_takes_as_long_for_any_backlog_and_who_coalesces_what_it_took() -> None:
    case = ("uniform", 1_000_000)
    again = pace.outcome(plain.RECOMPUTE_ALL, case, BACKLOGS, {pace.ALL_PUPILS: series(50)})
    assert again.true_after.median == pytest.approx(100 / 50)
    for system in (RECALCD, pgq.COALESCING):
        own = pace.outcome(system, case, BACKLOGS, {case: series(400)})
        assert (own.events_per_s.median, own.true_after.median) == (400, 0.5)
