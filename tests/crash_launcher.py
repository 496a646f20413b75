"""Runs recalcd as it is, but for a stop at every await of the database protocol: there a test lets the worst happen.

A program of its own: it imports everything once, then forks a child for every run it is asked for. The child is the
real command line on real connections; only asyncpg.connect is replaced, by one whose connections report every protocol
call to the test, at four moments, and wait for its word with everything else standing still:

    before    nothing of the call has left the process
    sent      the request is written; what the server makes of it meanwhile is the test's affair
    answered  the server has done it (a commit is durable), but its answer lies unread in the socket
    after     the answer was read; the code that awaited it has not gone on yet

So every step is covered without anyone naming it, and production knows nothing of all this.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import struct
import sys
import time
import traceback
import types
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import asyncpg

import cli
from daemon import doorbell, migration_state, migrations
from daemon.migration_files import load_sets
from daemon.sql import SQL_ROOT

ANSWER_TIMEOUT_S = 20.0
"""How long the server may take to answer a statement before the run is given up."""

MOST_BYTES = 1 << 20
"""Of an answer that we look at."""

_connect = asyncpg.connect


def _known_texts() -> dict[str, str]:
    """Return the name of every text that the product sends: the stem of its file in sql/, or what a file made of it."""
    texts = {path.read_text("utf-8"): path.stem for path in SQL_ROOT.glob("queries/*.sql")}
    scripts = {path.read_text("utf-8"): path.name.removesuffix(".sql") for path in SQL_ROOT.glob("migrations/**/*.sql")}
    scripts |= dict.fromkeys((path.read_text("utf-8") for path in SQL_ROOT.glob("routines/*/*.sql")), "a routine")
    return texts | {f"{text}\n;select": name for text, name in scripts.items()}


NAMES = _known_texts()
_ID = re.compile(r"_?[0-9a-f]{32}")


def name_of(text: str) -> str:
    """Return what a statement is called in the list of points; a literal is called by its words, less any id."""
    if text.startswith("drop routine"):
        return "drop a routine"
    return NAMES.get(text) or _ID.sub("", " ".join(text.split())[:60])


class Stops:
    """The channel to the test: tells it of a point, and blocks the whole process until it says go on."""

    def __init__(self, channel: socket.socket) -> None:
        """Take our end of it."""
        self._channel = channel

    def at(self, phase: str, session: str, call: str, statement: str, backend_pid: int | None) -> None:
        """Stop."""
        self.tell([session, statement, call, phase, backend_pid])
        if not self._channel.recv(1):
            os._exit(70)  # the test is gone

    def tell(self, message: object) -> None:
        """Send a line of JSON."""
        self._channel.sendall(json.dumps(message).encode() + b"\n")


class WatchedProtocol:
    """A connection's protocol that stops at each of its awaits, whichever those are."""

    def __init__(self, stops: Stops, session: str, protocol: Any, transport: Any) -> None:
        """Take the real one."""
        self._stops = stops
        self._session = session
        self._protocol = protocol
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._protocol, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            result = attribute(*args, **kwargs)
            if not hasattr(result, "__await__"):
                return result
            return self._stopping(result, name, name_of(_text_of(*args, *kwargs.values())))

        return call

    async def _stopping(self, call: Any, name: str, statement: str) -> Any:
        def stop(phase: str) -> None:
            self._stops.at(phase, self._session, name, statement, self._protocol.get_server_pid())

        def sent() -> None:
            stop("sent")
            self._await_answer()
            stop("answered")

        stop("before")
        try:
            result = await _interrupted(call, sent)
        except Exception:
            stop("after")
            raise
        stop("after")
        return result

    def _await_answer(self) -> None:
        """Wait until the whole answer can be read, or the end of the connection; read nothing."""
        until = time.monotonic() + ANSWER_TIMEOUT_S
        with (
            contextlib.suppress(OSError, ValueError),  # the socket is closed: there will be no answer
            socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as ours,
        ):
            arrivals = select.poll()
            arrivals.register(ours, select.POLLIN | select.POLLRDHUP)
            while (left_s := until - time.monotonic()) > 0 and (found := arrivals.poll(left_s * 1000)):
                if found[0][1] != select.POLLIN or is_answer(ours.recv(MOST_BYTES, socket.MSG_PEEK)):
                    return
                time.sleep(0.0005)  # a part of it, such as a notice: poll would not wait for the rest
            print("the server does not answer", file=sys.stderr, flush=True)
            os._exit(70)


def is_answer(received: bytes) -> bool:
    """Tell whether these messages hold one that ends an answer.

    That is ReadyForQuery or an error; what is only prepared ends with its columns, or that it has none.
    """
    start = 0
    while start + 5 <= len(received):
        kind, length = struct.unpack_from("!cI", received, start)
        if kind in b"ZETn":
            return True
        start += 1 + length
    return len(received) == MOST_BYTES


def _text_of(*arguments: Any) -> str:
    """Return the statement among the arguments of a protocol's method, as text or prepared; "" if there is none."""
    texts = (getattr(each, "query", each) for each in arguments)
    return next((each for each in texts if isinstance(each, str) and not each.startswith("__asyncpg_")), "")


@types.coroutine
def _interrupted(call: Any, first_wait: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Await the call, as `await` does, but run first_wait once it has done all it can without waiting."""
    steps = call.__await__()
    try:
        future = next(steps)
        first_wait()
        while True:
            try:
                value = yield future
            except BaseException as error:  # noqa: BLE001  # a cancellation is the call's, too
                future = steps.throw(error)
            else:
                future = steps.send(value)
    except StopIteration as end:
        return end.value


def watch_connections(stops: Stops) -> None:
    """Let every connection from now on stop at its awaits."""

    class WatchedConnection(asyncpg.Connection):
        def __init__(self, protocol: Any, transport: Any, *others: Any) -> None:
            super().__init__(protocol, transport, *others)
            session = others[-1].server_settings["application_name"]
            self._protocol = WatchedProtocol(stops, session, protocol, transport)

    async def connect(*args: Any, server_settings: dict[str, str], **options: Any) -> Any:
        session = server_settings["application_name"]
        stops.at("before", session, "connect", "", None)
        options["connection_class"] = WatchedConnection
        opened = await _connect(*args, server_settings=server_settings, **options)
        stops.at("after", session, "connect", "", opened.get_server_pid())
        return opened

    asyncpg.connect = connect  # type: ignore[assignment]


def _run(request: dict[str, Any], channel: socket.socket) -> NoReturn:
    """Be the process that was asked for."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    stops = Stops(channel)
    stops.tell(os.getpid())
    if request["watched"]:
        watch_connections(stops)
    code: Any = 70
    try:
        cli.main(args=request["command"], prog_name="recalcd")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001  # a child must not return into the loop of its parent
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _requests(control: socket.socket) -> Iterator[tuple[dict[str, Any], socket.socket]]:
    """Yield what is asked for, and the channel of each run, until the test is gone."""
    while True:
        prefix, descriptors, _, _ = socket.recv_fds(control, 4, 1)
        if not prefix:
            return
        (length,) = struct.unpack("!I", prefix)
        request = json.loads(control.recv(length, socket.MSG_WAITALL))
        yield request, socket.socket(fileno=descriptors[0])


def serve(control: socket.socket) -> None:
    """Fork a child for each request; the last word on its channel is ours, and tells how it ended."""
    for request, channel in _requests(control):
        pid = os.fork()
        if pid == 0:
            control.close()
            _run(request, channel)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):  # the test is gone
            Stops(channel).tell(os.waitstatus_to_exitcode(status))
        channel.close()


def prepare() -> None:
    """Do once what every run would do: import what commands import when they are called, and read the SQL files."""
    for path in (Path(cli.__file__).parent / "daemon").glob("*.py"):
        importlib.import_module(f"daemon.{path.stem}")
    read_once = functools.cache(load_sets)
    read_once(SQL_ROOT)
    migration_state.load_sets = migrations.load_sets = read_once  # type: ignore[attr-defined]  # imported there, too
    doorbell.CROWD = 0  # writers never wait for each other here: whoever glances at them mutes the bell
    gc.freeze()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the test's; our end follows from its end
    prepare()
    serve(socket.socket(fileno=int(sys.argv[1])))
