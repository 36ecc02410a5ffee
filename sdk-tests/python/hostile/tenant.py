"""A hostile tenant, and clients that send requests that no SDK sends."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from e2b import Sandbox

from journeys import API_URL, MARK, edge_address

PORT = 8000
GUEST_PROGRAMS = Path(__file__).parent / "guest"


@dataclass(frozen=True)
class Tenant:
    key: str

    def create(self) -> Sandbox:
        return Sandbox.create(timeout=300, metadata=MARK, api_key=self.key)

    @contextmanager
    def sandbox(self) -> Iterator[Sandbox]:
        sandbox = self.create()
        try:
            yield sandbox
        finally:
            sandbox.kill()

    @contextmanager
    def misbehaving(self) -> Iterator[Sandbox]:
        """Creates a sandbox with a misbehaving server on `PORT`."""
        with self.sandbox() as sandbox:
            start(sandbox, "misbehave.py", str(PORT))
            yield sandbox


def start(sandbox: Sandbox, name: str, arguments: str = "", user: str = "user"):
    """Starts a program in a sandbox, and waits until it prints `ready`."""
    sandbox.files.write(f"/tmp/{name}", (GUEST_PROGRAMS / name).read_text())
    handle = sandbox.commands.run(f"python3 -u /tmp/{name} {arguments}", background=True, timeout=0, user=user)
    for stdout, stderr, _ in handle:
        assert not stderr, stderr
        if stdout and "ready" in stdout:
            handle.disconnect()
            return handle
    raise AssertionError(f"{name} exited")


def api_address() -> tuple[str, int]:
    url = urlsplit(API_URL)
    assert url.hostname and url.port
    return url.hostname, url.port


def head(sandbox: Sandbox, path: str, *, method: str = "GET", port: int = PORT, more: str = "") -> bytes:
    """Returns the head of a request to a sandbox's port."""
    routing = f"E2b-Sandbox-Id: {sandbox.sandbox_id}\r\nE2b-Sandbox-Port: {port}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: sandbox\r\n{routing}{more}\r\n".encode()


@asynccontextmanager
async def connections(
    address: tuple[str, int], count: int, *, sources: list[str] | None = None
) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Opens `count` connections from the source addresses in turn. Connections that the server refuses are no error."""
    opened = []

    async def connect(number: int) -> None:
        local = (sources[number % len(sources)], 0) if sources else None
        try:
            opened.append(await asyncio.wait_for(asyncio.open_connection(*address, local_addr=local), 10))
        except (OSError, TimeoutError):
            return

    try:
        for first in range(0, count, 256):
            await asyncio.gather(*(connect(number) for number in range(first, min(first + 256, count))))
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()
        await asyncio.sleep(0)


async def until_closed(reader: asyncio.StreamReader, seconds: float) -> tuple[bytes, bool]:
    """Returns the beginning of a reply, and true if the connection was closed in time."""
    beginning = b""
    try:
        async with asyncio.timeout(seconds):
            while part := await reader.read(1 << 16):
                beginning = (beginning + part)[:4096]
    except TimeoutError:
        return beginning, False
    except OSError:
        pass
    return beginning, True


def talk(address: tuple[str, int], request: bytes, seconds: float = 10) -> bytes:
    """Sends some bytes, and returns the reply until the server closes the connection or sends nothing for `seconds`."""
    with socket.create_connection(address, timeout=seconds) as connection:
        connection.sendall(request)
        parts = []
        try:
            while part := connection.recv(1 << 16):
                parts.append(part)
        except (TimeoutError, ConnectionResetError):
            pass
        return b"".join(parts)
