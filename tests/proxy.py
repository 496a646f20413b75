"""A proxy between clients and PostgreSQL, whose links a test can cut, stall, slow down, or let vanish.

It reads the messages that go by, so that a fault can be set to happen at a statement: when it is asked for, or when it
has been done and the answer is under way. https://www.postgresql.org/docs/current/protocol-message-formats.html

To the kernels at both ends a link that vanished here still looks sound: the proxy acknowledges every byte. That is how
a hung load balancer, tunnel or pooler looks, and what no TCP timeout notices. What a kernel makes of packets that are
really dropped needs a network namespace: tests/test_vanished_host.py.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import asyncpg

Direction = Literal["up", "down"]
"""To the server, or from it."""

BOTH: tuple[Direction, Direction] = ("up", "down")
CONNECT = "(connect)"
"""What a link asks for first, as a trap sees it."""

CANCEL = "(cancel)"
"""Name of the links on which clients ask for a statement to be cancelled."""

_CANCEL_REQUEST, _SSL_REQUEST, _GSS_REQUEST = 80877102, 80877103, 80877104


@dataclass
class Flow:
    """One direction of a link."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    vanishes: bool = False
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    buffer: bytearray = field(default_factory=bytearray)
    moves: asyncio.Event = field(default_factory=asyncio.Event)

    async def messages(self) -> AsyncIterator[list[bytes]]:
        """Yield what arrives, as whole messages; end with the stream."""
        while True:
            await self.moves.wait()
            data = await self.reader.read(65536)
            if not data:
                return
            self.buffer += data
            yield list(self._take())

    def _take(self) -> Iterator[bytes]:
        while len(self.buffer) >= 5 and len(self.buffer) > (size := int.from_bytes(self.buffer[1:5])):
            yield bytes(self.buffer[: size + 1])
            del self.buffer[: size + 1]

    async def send(self, data: bytes) -> None:
        """Send as slowly as we are told to."""
        await asyncio.sleep(self.delay_s)
        step = len(data) if self.bytes_per_s is None else max(1, int(self.bytes_per_s / 20))
        for start in range(0, len(data), step or 1):
            self.writer.write(data[start : start + step])
            await self.writer.drain()
            if self.bytes_per_s is not None:
                await asyncio.sleep(step / self.bytes_per_s)


class Link:
    """A client's connection, and the one to the server that goes with it."""

    def __init__(self, application_name: str, up: Flow, down: Flow) -> None:
        """Let everything through."""
        self.application_name = application_name
        self.flows: dict[Direction, Flow] = {"up": up, "down": down}
        self.asked = CONNECT
        """SQL of the statement that runs, or ran last."""
        self.is_answered = True
        self.is_open = True
        self._prepared: dict[bytes, str] = {}
        self.restore()

    def vanish(self, *directions: Direction) -> None:
        """Lose every byte from now on, and tell nobody: half-open. Both directions unless told otherwise."""
        for direction in directions or BOTH:
            self.flows[direction].vanishes = True

    def stall(self, *directions: Direction) -> None:
        """Stop reading: nothing is lost, but the sender has to wait once the buffers are full."""
        for direction in directions or BOTH:
            self.flows[direction].moves.clear()

    def slow_down(self, *, delay_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        """Hold up what passes, or let only so much of it pass in a second."""
        for flow in self.flows.values():
            flow.delay_s, flow.bytes_per_s = delay_s, bytes_per_s

    def restore(self) -> None:
        """Let everything through again. What was lost stays lost: after a loss in mid-conversation, cut instead."""
        for flow in self.flows.values():
            flow.vanishes, flow.delay_s, flow.bytes_per_s = False, 0.0, None
            flow.moves.set()

    def cut(self, how: Literal["rst", "fin"] = "rst") -> None:
        """Close both ends: rst as a firewall or a dead process does, fin as an orderly shutdown."""
        self.is_open = False
        for flow in self.flows.values():
            if how == "rst":
                _reset(flow.writer)
            else:
                flow.writer.close()

    def read_request(self, message: bytes) -> str | None:
        """Keep up with what the client asks for; return the SQL of a statement that is to run now."""
        kind, body = message[:1], message[5:]
        if kind == b"P":
            name, sql, _ = body.split(b"\0", 2)
            self._prepared[name] = sql.decode()
        elif kind == b"B":
            _, name, _ = body.split(b"\0", 2)
            self.asked, self.is_answered = self._prepared[name], False
            return self.asked
        elif kind == b"Q":
            self.asked, self.is_answered = body.rstrip(b"\0").decode(), False
            return self.asked
        return None


Act = Callable[[Link], None]


@dataclass
class Trap:
    """Something to do to the first link of a name on which a statement is asked for, or is done."""

    application_name: str
    sql: str
    when: Literal["request", "reply"]
    act: Act
    link: Link | None = None
    _sprung: asyncio.Event = field(default_factory=asyncio.Event)

    def consider(self, link: Link, sql: str, when: str) -> None:
        if (
            self.link is None
            and self.when == when
            and link.application_name == self.application_name
            and self.sql.lower() in sql.lower()
        ):
            self.link = link
            self.act(link)
            self._sprung.set()

    async def sprung(self, timeout_s: float = 10.0) -> Link:
        """Wait until it has happened; return to whom."""
        async with asyncio.timeout(timeout_s):
            await self._sprung.wait()
        assert self.link is not None
        return self.link


class Proxy:
    """Links as they come and go. It never forgets one, so that a test can say what became of it."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        """Take the server's: the path of its socket, or host and port."""
        self.address = address
        self.dsn = ""
        self.links: list[Link] = []
        self.swallowed: set[bytes] = set()
        """Types of the server's messages that never arrive. {b"A"}: notifications, as behind a transaction pooler."""
        self.is_silent = False
        """Whether connects hang: accepted, and never heard of again."""
        self.is_refusing = False
        """Whether connects are reset."""
        self._traps: list[Trap] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, application_name: str) -> list[Link]:
        """Return the open links of that name, oldest first."""
        return [link for link in self.links if link.is_open and link.application_name == application_name]

    def at_request(self, application_name: str, sql: str, act: Act) -> Trap:
        """Act when a statement that holds this text is asked for; a link that vanishes then loses the request."""
        return self._set(Trap(application_name, sql, "request", act))

    def at_reply(self, application_name: str, sql: str, act: Act) -> Trap:
        """Act when the server has done such a statement; a link that vanishes then loses the answer."""
        return self._set(Trap(application_name, sql, "reply", act))

    def _set(self, trap: Trap) -> Trap:
        self._traps.append(trap)
        return trap

    def _spring(self, link: Link, sql: str, when: str) -> None:
        for trap in self._traps:
            trap.consider(link, sql, when)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client until both directions have ended."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if self.is_refusing:
                _reset(writer)
            elif self.is_silent:
                await asyncio.Event().wait()
            else:
                await self._relay(reader, writer)
        self._tasks.discard(task)
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup, name = await _read_startup(reader, writer)
        server_reader, server_writer = await _open(self.address)
        link = Link(name, Flow(reader, server_writer), Flow(server_reader, writer))
        self.links.append(link)
        self._spring(link, CONNECT, "request")
        link.is_answered = False
        if not link.flows["up"].vanishes:
            server_writer.write(startup)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, "up"))
                group.create_task(self._pump(link, "down"))
        finally:
            link.is_open = False
            server_writer.close()

    async def _pump(self, link: Link, direction: Direction) -> None:
        """Pass on one direction. An end that closes is passed on, too, unless the direction has vanished."""
        flow = link.flows[direction]
        with contextlib.suppress(OSError):
            async for messages in flow.messages():
                passed = [each for each in messages if self._passes(link, direction, each)]
                with contextlib.suppress(OSError):  # that end is gone, which its own direction tells
                    await flow.send(b"".join(passed))
        if not flow.vanishes:
            flow.writer.close()

    def _passes(self, link: Link, direction: Direction, message: bytes) -> bool:
        if direction == "up":
            if sql := link.read_request(message):
                self._spring(link, sql, "request")
        elif not link.is_answered:
            link.is_answered = True
            self._spring(link, link.asked, "reply")
        swallowed = direction == "down" and message[:1] in self.swallowed
        return not swallowed and not link.flows[direction].vanishes

    async def close(self) -> None:
        """End every link."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def proxy_to(dsn: str, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """Stand before a database while the block runs; proxy.dsn is the way through."""
    proxy = Proxy(await _address(dsn))
    async with await asyncio.start_server(proxy.serve, host, 0) as listener:
        place, port = urlsplit(dsn), listener.sockets[0].getsockname()[1]
        user = place.netloc.rpartition("@")[0] or "postgres"
        proxy.dsn = f"postgresql://{user}@{host}:{port}{place.path}?sslmode=disable"
        try:
            yield proxy
        finally:
            listener.close()
            await proxy.close()


async def _read_startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, str]:
    """Return a client's first message and who it says it is. Offers of encryption are declined."""
    while True:
        head = await reader.readexactly(8)
        size, code = struct.unpack("!II", head)
        if code in (_SSL_REQUEST, _GSS_REQUEST):
            writer.write(b"N")
            continue
        body = await reader.readexactly(size - 8)
        if code == _CANCEL_REQUEST:
            return head + body, CANCEL
        words = body.decode().split("\0")
        parameters = dict(zip(words[::2], words[1::2], strict=False))
        return head + body, parameters.get("application_name", "")


async def _address(dsn: str) -> str | tuple[str, int]:
    """Ask asyncpg where a URI leads to: a socket or a host."""
    probe = await asyncpg.connect(dsn)
    try:
        address: str | tuple[str, int] = probe._addr  # type: ignore[attr-defined]
    finally:
        await probe.close()
    return address


async def _open(address: str | tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, str):
        return await asyncio.open_unix_connection(address)
    return await asyncio.open_connection(*address)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye: over TCP, lingering for no time at all means RST."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
