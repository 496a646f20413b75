"""top: the whole screen, in 80 columns and 24 lines, at any other size, and not where there is no terminal."""

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import asyncpg
import pytest
from engine import LEDGER, drain, enqueue, make_ledger, record
from typed import recalcd_on

from daemon.batch import Recalculation, prepare_history
from daemon.render_top import BARS, screen_lines, sparkline
from daemon.top import SLICES, FailingKey, Snapshot, read_snapshot

ALTERNATE_SCREEN_ON, ALTERNATE_SCREEN_OFF, CURSOR_ON = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


@pytest.fixture
async def snapshot(db: asyncpg.Connection) -> Snapshot:
    await make_ledger(db)
    await prepare_history(db, days_ahead=1)
    for account in "abc":
        await record(db, account)
    await drain(db, Recalculation(None, "live", keep_history=True))
    await enqueue(db, LEDGER, "late")
    return await read_snapshot(db)


async def test_a_snapshot_tells_of_the_last_two_minutes(snapshot: Snapshot) -> None:
    assert len(snapshot.series) == SLICES
    assert sum(each.key_count for each in snapshot.series[-3:]) == 3
    assert sum(each.event_count for each in snapshot.series) == 3
    assert [each.freshness_s is None for each in snapshot.series].count(False) == 1
    (ledger,) = [each for each in snapshot.status.topics if each.topic == LEDGER]
    assert (ledger.pending_keys, snapshot.failing) == (1, [])


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (20, 3)])
async def test_it_fits_whatever_the_size_is(snapshot: Snapshot, width: int, height: int) -> None:
    many = [FailingKey(LEDGER, f"key {n}", "retrying", n, "22012", "division by zero") for n in range(99)]
    lines = screen_lines(Snapshot(snapshot.status, snapshot.series, many), width=width, height=height)
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("NOT HEALTHY"[:width])


async def test_nothing_is_missing_on_a_small_terminal(snapshot: Snapshot) -> None:
    failing = [FailingKey(LEDGER, "b", "dead", 8, "22012", "division by zero")]
    screen = "\n".join(screen_lines(Snapshot(snapshot.status, snapshot.series, failing), width=80, height=24))
    for part in ("NOT HEALTHY", "keys/s", "freshness", LEDGER, "no daemon is running", "division by zero", "Ctrl-C"):
        assert part in screen


def test_bars_grow_with_their_values() -> None:
    assert sparkline([0, None, 1, 8, 4]) == f"{BARS[0]} {BARS[1]}{BARS[7]}{BARS[4]}"
    assert sparkline([0, 0]) == BARS[0] * 2
    assert sparkline([]) == ""


async def test_where_there_is_no_terminal_it_says_so(dsn: str) -> None:
    answer = await recalcd_on(dsn)("top")
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "recalcd status --watch" in answer.stderr


async def test_bad_input_is_refused(dsn: str) -> None:
    answer = await recalcd_on(dsn)("top", "--every", "0")
    assert answer.exit_code == 2


def set_size(terminal: int, lines: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


async def test_it_draws_follows_the_size_and_leaves_the_terminal_as_it_was(dsn: str) -> None:
    ours, theirs = pty.openpty()
    set_size(ours, 24, 80)
    # xdist tells its workers a size, which would outrank the terminal's.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", "top", "--every", "0.2",
        env=environment | {"RECALCD_DATABASE_URL": dsn, "TERM": "xterm"},
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    seen = bytearray()

    async def until(pattern: bytes) -> None:
        while not re.search(pattern, seen):
            seen.extend(await asyncio.to_thread(os.read, ours, 65536))

    try:
        async with asyncio.timeout(30):
            await until(rb"(?s)NOT HEALTHY.*keys/s")
            assert ALTERNATE_SCREEN_ON in seen
            seen.clear()
            set_size(ours, 10, 40)
            process.send_signal(signal.SIGWINCH)
            await until(rb"NOT HEALTHY: no daemon is running: star\xe2\x80\xa6")
            process.send_signal(signal.SIGINT)
            await until(re.escape(ALTERNATE_SCREEN_OFF))
            assert await process.wait() == 130
        assert process.stderr
        assert b"Traceback" not in await process.stderr.read()
        assert CURSOR_ON in seen
    finally:
        if process.returncode is None:
            process.kill()
        os.close(ours)
