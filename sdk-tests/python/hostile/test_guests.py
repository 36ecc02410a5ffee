"""Attacks by guests."""

import asyncio
import os
import subprocess
from collections.abc import Iterator

import pytest
from e2b import SandboxException

from hostile.measuring import ATTACK_SECONDS
from hostile.tenant import GUEST_PROGRAMS, connections, head, start, until_closed
from journeys import edge_address

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0, reason="without root guests use QEMU's user-mode network, which does not affect the host's tables"
)

# Documentation network (RFC 5737), simulated by a network namespace; no packet leaves this machine.
NETWORK = "203.0.113.0/24"
NAMESPACE = "hearth-hostile"
LINK = "hearth-hostile"

# Endless replies of a server in the guest, and true if the proxy must terminate them. Bodies may be endless.
ANSWERS = {
    "/continue": True,
    "/hints": True,
    "/head": True,
    "/headers": True,
    "/extension": True,
    "/trailers": True,
    "/crumbs": False,
}
ENDS_WITHIN = 15.0


@pytest.mark.parametrize("path", ANSWERS)
async def test_endless_replies(unnoticed, misbehaving, path):
    async with connections(edge_address(), 8) as opened:
        with unnoticed():
            for _, writer in opened:
                writer.write(head(misbehaving, path))
            seconds = ENDS_WITHIN if ANSWERS[path] else ATTACK_SECONDS
            outcomes = await asyncio.gather(*(until_closed_or_answered(reader, seconds) for reader, _ in opened))
    assert len(outcomes) == 8
    assert all(ended for _, ended in outcomes) or not ANSWERS[path], outcomes


async def until_closed_or_answered(reader, seconds: float) -> tuple[bytes, bool]:
    """Waits until the connection closes, or the proxy sends an error reply and keeps the connection open."""
    try:
        async with asyncio.timeout(seconds):
            line = await reader.readline()
            while line.startswith((b"HTTP/1.1 1", b"\r\n", b"Link:", b"link:")):
                line = await reader.readline()
    except TimeoutError:
        return b"", False
    except (OSError, ValueError):
        return b"", True
    if line.startswith(b"HTTP/1.1 502") or not line:
        return line, True
    return await until_closed(reader, seconds)


def test_endless_log_lines(unnoticed, tenant):
    """A program in place of the guest daemon sends them."""
    with tenant.sandbox() as sandbox:
        sandbox.files.write("/tmp/daemon.py", (GUEST_PROGRAMS / "daemon.py").read_text())
        replace = "chmod 755 /tmp/daemon.py && mv /usr/bin/envd /usr/bin/envd.real && cp /tmp/daemon.py /usr/bin/envd && pkill -9 -x envd"
        with unnoticed():
            with pytest.raises(SandboxException):
                sandbox.commands.run(replace, user="root")


@pytest.fixture
def network() -> Iterator[str]:
    """Simulates hosts of a public network in a network namespace."""

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True)

    def remove() -> None:
        ip("netns", "delete", NAMESPACE, check=False)
        ip("link", "delete", LINK, check=False)

    remove()
    try:
        ip("netns", "add", NAMESPACE)
        ip("link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        ip("address", "add", "203.0.113.254/24", "dev", LINK)
        ip("link", "set", LINK, "up")
        ip("-netns", NAMESPACE, "link", "set", "lo", "up")
        ip("-netns", NAMESPACE, "link", "set", "eth0", "up")
        # All addresses exist, so that no packet waits for address resolution.
        ip("-netns", NAMESPACE, "route", "add", "local", NETWORK, "dev", "lo")
        ip("-netns", NAMESPACE, "address", "add", "203.0.113.1/24", "dev", "eth0")
        yield NETWORK.split("/")[0]
    finally:
        remove()


@needs_namespaces
def test_a_flood_of_arp(unnoticed, tenant):
    with tenant.sandbox() as sandbox, unnoticed():
        start(sandbox, "flood.py", "arp", user="root")


@needs_namespaces
def test_a_flood_of_datagrams(unnoticed, tenant, network):
    with tenant.sandbox() as sandbox, unnoticed():
        start(sandbox, "flood.py", f"udp {network}")


# Programs that use all available resources; each exits by itself.
GREEDY = {
    "fork bomb": "timeout 20 bash -c 'b() { b | b & }; b; sleep 20'",
    "memory": "timeout 20 python3 -c 'x = [bytearray(16 << 20) for _ in range(1000)]'",
    "disk": "timeout 20 sh -c 'head -c 1500M /dev/urandom > /home/user/full; sync'",
    "files": "timeout 20 sh -c 'seq 1 100000 | xargs touch'",
    "output": "timeout 20 yes",
    "sockets": "timeout 20 python3 -c 'import socket, time; s = [socket.socketpair() for _ in range(100000)]; time.sleep(20)'",
}


@pytest.mark.parametrize("greed", GREEDY)
def test_greedy_programs(unnoticed, tenant, greed):
    with tenant.sandbox() as sandbox, unnoticed():
        sandbox.commands.run(GREEDY[greed], background=True, timeout=0).disconnect()
