"""recalcd demo, as typed; and its parts. It brings its own server, so this is independent of --pg."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO
from uuid import UUID

import asyncpg
import pytest
from school import NOBODY, found

from daemon.demo import freshness, show
from daemon.demo.account import Account, Cell, Grid, Recalculated, Wrote
from daemon.demo.freshness import DoneBatch, Freshness, pair
from daemon.demo.interruption import Interrupted, interruptible
from daemon.demo.writers import Work, Writers, choose_work, plan
from daemon.settings import Settings
from daemon.verify import Verdict

SMALL = ["--students", "60", "--groups", "4", "--units", "6", "--feedback", "600", "--rate", "100"]
ENDLESS = [*SMALL, "--writes", "100000"]

START = datetime(2026, 1, 15, 12, tzinfo=UTC)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder for temporary files that the server's user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(path))
    yield path
    shutil.rmtree(path)


@contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "cli", "demo", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def read_until(stream: IO[str] | None, beginning: str) -> None:
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError(f"{lines} ended without {beginning!r}")


def children_of(pid: int) -> dict[int, str]:
    """Return its child processes, and their commands."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(each): Path(f"/proc/{each}/cmdline").read_text().replace("\0", " ") for each in pids}


def are_alive(pids: dict[int, str]) -> list[str]:
    return [command for pid, command in pids.items() if Path(f"/proc/{pid}").exists()]


def test_a_small_demo_ends_well_and_leaves_nothing(folder: Path) -> None:
    with demo(*SMALL, "--writes", "60", "--json") as process:
        stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    account = json.loads(stdout)
    assert account["problems"] == []
    assert account["writes"] == account["events"] == 60
    assert 0 < account["recalculations"] <= 60
    assert account["batches"] <= account["recalculations"]
    fresh = account["freshness_ms"]
    assert 0 < fresh["p50_ms"] <= fresh["p95_ms"] <= fresh["p99_ms"] <= fresh["max_ms"]
    assert account["verify"]["drift"] == 0
    assert account["verify"]["checked_count"] == 60
    pupil = account["pupil"]
    assert pupil["after"]["is_fresh"]
    assert pupil["after"]["calculated_at"] > pupil["before"]["calculated_at"]
    assert pupil["after"]["student_id"] in account["group"]["pupils"]
    assert account["kept"] is None
    assert "live writes: done in" in stderr
    assert list(folder.iterdir()) == []


def test_a_kept_demo_can_be_reached_and_stopped_as_it_says(folder: Path) -> None:
    with demo(*SMALL, "--writes", "20", "--keep") as process:
        stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 0, stderr
    assert "VERIFY  0 drift: 60 of 60 pupils checked" in stdout
    lines = [line.strip() for line in stdout.splitlines()]
    try:
        assert shell(lines[lines.index("psql") + 1] + " -XAtc 'select count(*) from school.student'") == "60\n"
        assert shell(lines[lines.index("status") + 1]).startswith("healthy")
        assert "daemon.started" in Path(lines[lines.index("log") + 1]).read_text()
    finally:
        shell(lines[lines.index("stop both, and remove them") + 1])
    assert list(folder.iterdir()) == []


def shell(line: str) -> str:
    return subprocess.run(line, shell=True, check=True, capture_output=True, text=True, timeout=60).stdout  # noqa: S602  # what we print is for a shell


@pytest.mark.parametrize(
    ("step", "signum", "exit_code"),
    [
        ("PostgreSQL 18 …", signal.SIGINT, 130),
        ("sample school …", signal.SIGTERM, 143),
        ("daemon …", signal.SIGINT, 130),
        ("live writes …", signal.SIGINT, 130),
        ("live writes:", signal.SIGHUP, 129),
    ],
)
def test_an_interrupted_demo_leaves_nothing(folder: Path, step: str, signum: signal.Signals, exit_code: int) -> None:
    with demo(*ENDLESS) as process:
        read_until(process.stderr, step)
        children = children_of(process.pid)
        process.send_signal(signum)
        process.send_signal(signum)  # impatience changes nothing
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == exit_code, stderr
    assert stdout == ""
    assert stderr.splitlines()[-1] == (
        "recalcd: Interrupted. Daemon and database are stopped, and nothing is left of them."
    )
    assert "Traceback" not in stderr
    assert are_alive(children) == []
    assert list(folder.iterdir()) == []


def test_a_demo_whose_daemon_dies_says_so(folder: Path) -> None:
    with demo(*ENDLESS) as process:
        read_until(process.stderr, "live writes …")
        children = children_of(process.pid)
        (daemon,) = (pid for pid, command in children.items() if command.endswith(" run "))
        os.kill(daemon, signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "recalcd: The daemon died: nobody told it to, yet it ended by signal 9 (Killed)." in stderr
    assert "listener.started" in stderr, "the end of its log"
    assert "Traceback" not in stderr
    assert are_alive(children) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (["--database-url", "postgresql://somewhere/else", "demo"], 2, "The demo brings a database of its own"),
        (["demo", "--writes", "0"], 2, "--writes"),
        (["demo", "--feedback", "0"], 2, "--feedback"),
    ],
)
def test_what_can_not_be_meant_is_refused(arguments: list[str], exit_code: int, sentence: str) -> None:
    done = subprocess.run([sys.executable, "-m", "cli", *arguments], capture_output=True, check=False, text=True)
    assert done.returncode == exit_code
    assert sentence in done.stderr


def test_a_misspelt_setting_is_refused_before_anything_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALCD_WORKER", "3")
    with demo(*ENDLESS) as process:
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 78
    assert stderr.startswith("recalcd: Unknown in the environment: RECALCD_WORKER")
    assert list(folder.iterdir()) == []


async def test_a_failure_that_ctrl_c_caused_is_the_interruption() -> None:
    async def fail_because_a_child_heard_it() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        await interruptible(fail_because_a_child_heard_it())
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


async def test_a_second_signal_does_not_disturb_the_cleaning_up() -> None:
    cleaned = asyncio.Event()

    async def clean_up_under_fire() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            cleaned.set()

    with pytest.raises(Interrupted):
        await interruptible(clean_up_under_fire())
    assert cleaned.is_set()


def at(milliseconds: float) -> datetime:
    return START + timedelta(milliseconds=milliseconds)


def batch(started_at: float, committed_at: float, keys: str = "7") -> DoneBatch:
    return DoneBatch(list(keys), 1, at(started_at), at(committed_at))


@pytest.mark.parametrize(
    ("commits", "batches", "pairs"),
    [
        pytest.param([0, 20], [(5, 9), (25, 29)], [(20, 29), (0, 9)], id="each has a batch of its own"),
        pytest.param([0, 2, 4], [(5, 9)], [(4, 9), (2, 9), (0, 9)], id="one batch gathers all"),
        pytest.param([0, 20, 21], [(5, 9), (25, 29)], [(21, 29), (20, 29), (0, 9)], id="one gathers some"),
        pytest.param([6], [(5, 9)], [(6, 9)], id="became visible just after the batch had noted its start"),
        pytest.param([0, 4], [(5, 9), (10, 14)], [(4, 14), (0, 9)], id="stamped before the first batch, visible after"),
        pytest.param([0], [], [], id="no batch took it"),
        pytest.param([0, 20], [(5, 9)], [(0, 9)], id="no batch took the second"),
    ],
)
def test_a_write_is_paired_with_the_batch_that_took_it(
    commits: list[float], batches: list[tuple[float, float]], pairs: list[tuple[float, float]]
) -> None:
    found = pair([at(each) for each in commits], [batch(*each) for each in batches])
    assert found == [(at(commit), at(done)) for commit, done in pairs]


def test_keys_are_measured_apart_and_lost_writes_counted() -> None:
    commits = [("7", at(0)), ("8", at(1)), ("8", at(30)), ("9", at(2))]
    batches = [batch(5, 9, keys="78"), batch(10, 12, keys="6")]
    waited_s, lost_count = freshness.measure(commits, batches)
    assert sorted(waited_s) == pytest.approx([0.008, 0.009])
    assert lost_count == 2


def test_percentiles_are_values_that_were_measured() -> None:
    assert freshness.summarise([each / 1000 for each in range(100, 0, -1)]) == Freshness(50.0, 95.0, 99.0, 100.0)
    assert freshness.summarise([0.0071]) == Freshness(7.1, 7.1, 7.1, 7.1)
    assert freshness.summarise([]) is None


def test_every_fifth_write_goes_to_a_busy_pupil_and_the_first_to_the_one_shown() -> None:
    busy = [Work(UUID(int=number), UUID(int=0), "7A", UUID(int=0), is_busy=True) for number in range(3)]
    others = [replace(busy[0], student_id=UUID(int=number), is_busy=False) for number in range(3, 100)]
    planned = list(plan([*busy, *others], 101))
    assert planned[0] == busy[0]
    assert [each.is_busy for each in planned] == [number % 5 == 0 for number in range(101)]
    assert all(each.is_busy for each in plan(busy, 10)), "a school without others"


async def test_writers_count_what_was_written_what_changed_nothing_and_what_failed(
    db: asyncpg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    school = await found(db)
    await school.assign()
    monkeypatch.setattr("random.triangular", lambda *_: 7000)
    work = await choose_work(db)
    assert {each.student_id for each in work} == set(school.pupils)
    stranger = replace(work[0], student_id=NOBODY)
    writers = Writers(settings, iter([work[0], work[1], work[1], stranger]), rate_per_s=1000)
    await writers.run()
    assert sorted(write.key for write in writers.done) == sorted(str(each.student_id) for each in work[:2])
    assert writers.unchanged_count == 1
    assert writers.failed == [f"there is no pupil {NOBODY}"]
    assert writers.count == 4


REPORT = {
    "student_id": UUID(int=7),
    "average": 0.5,
    "activity_average": None,
    "assessment_average": 0.5,
    "feedback_count": 1,
    "assignment_count": 4,
    "latest_score": 0.5,
    "latest_given_at": START,
    "calculated_at": START,
    "is_fresh": True,
    "subjects": {"Music": {"average": 0.5, "working_level": 2}},
}
GOOD = Account(
    student_count=3,
    wrote=Wrote(write_count=4, seconds=2.0, unchanged_count=1, failed=[]),
    recalculated=Recalculated(2, 3, 3, Freshness(1, 2, 3, 4), lost_count=0),
    pending_count=0,
    failing_count=0,
    before=REPORT,
    after=REPORT | {"average": 0.75, "subjects": {"Music": {"average": 0.75, "working_level": 3}}},
    group=Grid("7A", UUID(int=1), 3, 1, ["Rhythm"], {str(UUID(int=7)): 0.75}, {str(UUID(int=7)): [Cell(0.75, None)]}),
    verdict=Verdict(checked_count=3),
)


def test_a_good_account_has_no_problems_and_fits_80_columns() -> None:
    assert GOOD.problems == []
    text = show.account_text(GOOD)
    assert max(map(len, text.splitlines())) <= 80
    assert "0 drift" in text
    assert "NOT AS IT SHOULD BE" not in text


def test_the_comparison_marks_what_changed() -> None:
    lines = show.comparison(GOOD.before, GOOD.after).splitlines()
    marked = [line.split() for line in lines if line.endswith("*")]
    assert marked == [["average", "0.5", "0.75", "*"], ["Music", "0.50", "L2", "0.75", "L3", "*"]]


@pytest.mark.parametrize(
    ("account", "problem"),
    [
        (replace(GOOD, verdict=Verdict(3, drifted=["7"])), "1 of 3 pupils drifted"),
        (
            replace(GOOD, verdict=Verdict(2, failed={"7": asyncpg.RaiseError("no")})),
            "the recalculation fails for 1 of 3 pupils",
        ),
        (replace(GOOD, verdict=Verdict(2, left_out=["7"])), "2 of 3 pupils were verified"),
        (replace(GOOD, wrote=replace(GOOD.wrote, failed=["no pupil"])), "1 of 4 writes failed; the first: no pupil"),
        (replace(GOOD, recalculated=replace(GOOD.recalculated, recalculation_count=0)), "nothing was recalculated"),
        (replace(GOOD, recalculated=replace(GOOD.recalculated, event_count=2)), "events written: 3, but taken: 2"),
        (
            replace(GOOD, recalculated=replace(GOOD.recalculated, lost_count=1)),
            "writes that were never recalculated: 1",
        ),
        (replace(GOOD, pending_count=5), "events left in the outbox: 5"),
        (replace(GOOD, failing_count=2), "pupils whose recalculation is owed (outbox.failure): 2"),
        (replace(GOOD, after=GOOD.before), "the pupil's report is as it was"),
        (replace(GOOD, after={**GOOD.after, "is_fresh": False}), "the pupil's report is not fresh"),
        (replace(GOOD, daemon_trouble="ended with exit code 1"), "the daemon ended with exit code 1"),
    ],
)
def test_whatever_is_off_is_said(account: Account, problem: str) -> None:
    assert problem in account.problems
    assert f"  {problem}\n" in show.account_text(account) + "\n"
