"""Attacks by clients, with and without credentials."""

import asyncio
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest
from e2b import Sandbox
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

from hostile import server
from hostile.measuring import ATTACK_SECONDS
from hostile.tenant import PORT, api_address, connections, head, talk
from journeys import API_URL, ENVD_PORT, MARK, edge_address

# Loopback addresses that the neighbour does not use.
ONE_ADDRESS = ["127.0.0.66"]
MANY_ADDRESSES = [f"127.0.66.{number}" for number in range(1, 129)]

LISTENERS = {"api": api_address, "edge": edge_address}


@pytest.mark.parametrize("sources", [ONE_ADDRESS, MANY_ADDRESSES], ids=["from one address", "from many"])
@pytest.mark.parametrize("listener", LISTENERS)
async def test_idle_connections(unnoticed, listener, sources):
    async with connections(LISTENERS[listener](), 4096, sources=sources):
        with unnoticed():
            await asyncio.sleep(ATTACK_SECONDS)


@pytest.mark.parametrize("listener", LISTENERS)
async def test_slow_request_heads(unnoticed, listener):
    async with connections(LISTENERS[listener](), 1024, sources=MANY_ADDRESSES) as opened:
        with unnoticed():
            ends = asyncio.get_running_loop().time() + ATTACK_SECONDS
            beginning = b"GET /health HTTP/1.1\r\nHost: sandbox\r\nX-Slow: "
            for _, writer in opened:
                writer.write(beginning)
            while asyncio.get_running_loop().time() < ends:
                for _, writer in opened:
                    writer.write(b"a")
                await asyncio.sleep(0.5)


async def test_bodies_that_a_guest_never_reads(unnoticed, misbehaving):
    """Uses HTTP/2, where a client can send many bodies concurrently on one connection."""
    before = server.memory()
    count, streams = 32, 32
    async with connections(edge_address(), count) as opened:
        with unnoticed():
            held = await asyncio.gather(*(fill(reader, writer, misbehaving, streams) for reader, writer in opened))
            await asyncio.sleep(ATTACK_SECONDS)
            grown = server.memory() - before
    print(f"{sum(held) >> 10} KiB were sent, the server holds {grown >> 10} KiB more")
    assert sum(held) > 0, "the clients must have sent something"
    assert grown < 128 << 20, f"{grown >> 20} MiB for {count} connections"


async def fill(reader, writer, sandbox, streams: int) -> int:
    """Sends bodies until the server accepts no more; returns the number of accepted bytes."""
    connection = H2Connection(config=H2Configuration(client_side=True))
    connection.initiate_connection()
    routing = [("e2b-sandbox-id", sandbox.sandbox_id), ("e2b-sandbox-port", str(PORT))]
    request = [(":method", "POST"), (":scheme", "http"), (":authority", "sandbox"), (":path", "/unread"), *routing]
    for number in range(streams):
        connection.send_headers(1 + 2 * number, request)
    writer.write(connection.data_to_send())
    sent = 0
    ends = asyncio.get_running_loop().time() + ATTACK_SECONDS
    while asyncio.get_running_loop().time() < ends:
        try:
            async with asyncio.timeout(0.3):
                connection.receive_data(await reader.read(1 << 16))
        except TimeoutError:
            pass
        except (OSError, ProtocolError):
            break
        for stream in range(1, 2 * streams, 2):
            try:
                while (room := min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size)) > 0:
                    connection.send_data(stream, bytes(room))
                    sent += room
            except ProtocolError:
                continue
        writer.write(connection.data_to_send())
    return sent


def test_as_many_requests_as_sandboxes_accept(unnoticed, tenant):
    """Sends requests to several sandboxes, to a port that never replies."""
    with tenant.misbehaving() as one, tenant.misbehaving() as two, tenant.misbehaving() as three:
        asyncio.run(hang(unnoticed, [one, two, three]))
    # Request slots and file descriptors are free again.
    with tenant.misbehaving() as again:
        assert talk(edge_address(), head(again, "/", more="Connection: close\r\n")).startswith(b"HTTP/1.1 200")


async def hang(unnoticed, sandboxes) -> None:
    async with connections(edge_address(), 1024 * len(sandboxes), sources=MANY_ADDRESSES) as opened:
        for number, (_, writer) in enumerate(opened):
            writer.write(head(sandboxes[number % len(sandboxes)], "/hang"))
        with unnoticed():
            # A neighbour still gets a sandbox, which needs descriptors.
            created = await asyncio.to_thread(Sandbox.create, timeout=60, metadata=MARK)
            await asyncio.to_thread(created.kill)


# Request heads that two HTTP parsers may interpret differently.
AMBIGUOUS = {
    "two hosts": ("Host: another\r\n", b""),
    "chunked twice": ("Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "a coding after chunked": ("Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "two lengths": ("Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"),
    "an invalid length": ("Content-Length: +5\r\n", b"hello"),
    "a space before the colon": ("X-Name : value\r\n", b""),
    "a folded line": ("X-Name: value\r\n folded\r\n", b""),
    "a bare line feed": ("X-Name: value\n", b""),
    "a bare line feed that ends the head": ("X-Name: value\n\n", b""),
    "a carriage return within a value": ("X-Name: val\rue\r\n", b""),
    "a zero byte within a value": ("X-Name: val\0ue\r\n", b""),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous_request_heads(misbehaving, case):
    more, body = AMBIGUOUS[case]
    smuggled = head(misbehaving, "/smuggled", more="Connection: close\r\n")
    for address, path in ((edge_address(), "/"), (api_address(), "/health")):
        answer = talk(address, head(misbehaving, path, method="POST", more=more) + body + smuggled)
        # The request is rejected, and the bytes after it are not parsed as another request.
        assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
        assert answer.count(b"HTTP/1.1 ") == 1, answer[:2000]
    seen = talk(edge_address(), head(misbehaving, "/", more="Connection: close\r\n"))
    assert seen.endswith(b"\r\n\r\n0"), f"requests were smuggled: {seen[-50:]!r}"


def test_command_clients_that_do_not_read(unnoticed, misbehaving):
    with unnoticed():
        asyncio.run(follow_without_reading(misbehaving))
    assert misbehaving.commands.run("echo still here").stdout == "still here\n"


async def follow_without_reading(sandbox) -> None:
    start = json.dumps({"process": {"cmd": "/bin/bash", "args": ["-c", "timeout 20 yes"]}}).encode()
    envelope = struct.pack(">BI", 0, len(start)) + start
    more = (
        f"Content-Type: application/connect+json\r\nConnect-Protocol-Version: 1\r\nContent-Length: {len(envelope)}\r\n"
        f"X-Access-Token: {sandbox._envd_access_token}\r\nAuthorization: Basic dXNlcjo=\r\n"
    )
    request = head(sandbox, "/process.Process/Start", method="POST", port=ENVD_PORT, more=more) + envelope
    async with connections(edge_address(), 16) as opened:
        for reader, writer in opened:
            writer.write(request)
        # Each stream has started; from then on the clients do not read.
        for reader, writer in opened:
            assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 200"), "the stream must start"
            writer.transport.pause_reading()
        await asyncio.sleep(ATTACK_SECONDS)


def test_cancelled_reads_of_fifos(unnoticed, misbehaving):
    misbehaving.commands.run("mkfifo fifo")
    more = f"X-Access-Token: {misbehaving._envd_access_token}\r\n"
    request = head(misbehaving, "/files?path=/home/user/fifo", port=ENVD_PORT, more=more)
    with unnoticed():
        asyncio.run(give_up(request))
        assert misbehaving.commands.run("echo still here", request_timeout=30).stdout == "still here\n"
        assert misbehaving.files.read("/etc/hostname", request_timeout=30).strip() == misbehaving.sandbox_id


async def give_up(request: bytes) -> None:
    async with connections(edge_address(), 600) as opened:
        for _, writer in opened:
            writer.write(request)
        await asyncio.sleep(2)


async def test_websockets_that_flood(unnoticed, misbehaving):
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    pings = b"\x89\x80\0\0\0\0" * 4096
    async with connections(edge_address(), 8) as opened:
        with unnoticed():
            await asyncio.gather(*(flood(*pair, head(misbehaving, "/pings", more=upgrade), pings) for pair in opened))


async def flood(reader, writer, request: bytes, pings: bytes) -> None:
    """Sends and reads as fast as possible for the duration of an attack."""
    writer.write(request)
    assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"HTTP/1.1 101")

    async def read() -> None:
        while await reader.read(1 << 16):
            pass

    async def write() -> None:
        while True:
            writer.write(pings)
            await writer.drain()

    try:
        async with asyncio.timeout(ATTACK_SECONDS):
            await asyncio.gather(read(), write())
    except (TimeoutError, OSError):
        pass


def test_unknown_keys(unnoticed):
    """Sends requests with API keys that do not exist."""

    def ask(number: int) -> None:
        key = f"e2b_{uuid4().hex}{uuid4().hex[:8]}"
        with httpx.Client(base_url=API_URL, headers={"X-API-Key": key}, timeout=30) as client:
            for _ in range(25):
                assert client.get("/v2/sandboxes").status_code == 401
                assert client.post("/v2/sandboxes", json={"templateID": "base"}).status_code == 401

    with unnoticed(), ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(ask, range(32)))
