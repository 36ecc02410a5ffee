"""Isolation: a sandbox can reach neither other sandboxes, nor the host, nor private networks of the host.

The tests connect only to addresses of this machine: its interfaces, the sandboxes' links, and a network namespace that
simulates a private network.
"""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from journeys import Guest, program

GUEST = "169.254.0.21"
GATEWAY = "169.254.0.22"
# Private network of the host, simulated by a network namespace.
LAN = "hearth-tests-lan"
LAN_LINK = "hearth-tests"
LAN_HOST, LAN_PEER = "192.168.213.1", "192.168.213.2"

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0,
    reason="without root the server uses QEMU's user-mode network, which does not isolate (see `hearth doctor`)",
)


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def host_addresses() -> dict[str, list[str]]:
    """Returns the IPv4 addresses of the host by interface, without loopback."""
    interfaces = json.loads(ip("-json", "-4", "address", "show"))
    return {
        interface["ifname"]: [address["local"] for address in interface["addr_info"]]
        for interface in interfaces
        if interface["ifname"] != "lo"
    }


@contextmanager
def listening(address: str = "0.0.0.0") -> Iterator[int]:
    """Listens on a port of the host, and yields the port."""
    with socket.create_server((address, 0)) as server:

        def accept() -> None:
            try:
                while True:
                    server.accept()[0].close()
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def lan() -> Iterator[int]:
    """Creates a peer on a private network of the host, and yields its open port."""

    def remove() -> None:
        for command in (["ip", "netns", "delete", LAN], ["ip", "link", "delete", LAN_LINK]):
            subprocess.run(command, check=False, capture_output=True)

    remove()
    server = None
    try:
        ip("netns", "add", LAN)
        ip("link", "add", LAN_LINK, "type", "veth", "peer", "name", "eth0", "netns", LAN)
        ip("address", "add", f"{LAN_HOST}/30", "dev", LAN_LINK)
        ip("link", "set", LAN_LINK, "up")
        ip("-netns", LAN, "address", "add", f"{LAN_PEER}/30", "dev", "eth0")
        ip("-netns", LAN, "link", "set", "eth0", "up")
        ip("-netns", LAN, "route", "add", "default", "via", LAN_HOST)
        listen = "import socket, sys; s = socket.create_server(('', 8000)); print(1, flush=True)\nwhile True: s.accept()[0].close()"
        server = subprocess.Popen(["ip", "netns", "exec", LAN, "python3", "-c", listen], stdout=subprocess.PIPE)
        assert server.stdout and server.stdout.readline()
        yield 8000
    finally:
        if server:
            server.kill()
            server.wait()
        remove()


def reached(sandbox, targets: list[str]) -> list[str]:
    """Returns the targets to which a program in the sandbox can connect."""
    sandbox.files.write("reach.py", program("reach.py"))
    return sandbox.commands.run(f"python3 reach.py {' '.join(targets)}", timeout=90).stdout.split()


def reachable_from_host(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def test_files_and_processes_are_not_shared(sandbox, new_sandbox):
    other = new_sandbox()
    sandbox.files.write("secret.txt", "mine")
    handle = sandbox.commands.run("sleep 4242", background=True, timeout=0)
    assert not other.files.exists("secret.txt")
    assert handle.pid not in [process.pid for process in other.commands.list()]
    assert "4242" not in other.commands.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", user="root").stdout
    other.files.write("secret.txt", "theirs")
    other.commands.run("sudo rm -rf /usr/share/doc /opt && sudo touch /opt")
    assert sandbox.files.read("secret.txt") == "mine"
    assert sandbox.commands.run("test -d /opt && echo untouched").stdout == "untouched\n"
    # Changes to a sandbox's disk do not affect the template.
    assert new_sandbox().commands.run("test -d /opt && ls /home/user").stdout == ""


# envd: S8
def test_a_token_is_valid_for_one_sandbox(sandbox, new_sandbox, edge):
    from journeys import ENVD_PORT, by_headers

    other = new_sandbox()
    url = "/files?path=/etc/hostname"
    own = {"X-Access-Token": sandbox._envd_access_token}
    assert edge.get(url, headers={**by_headers(sandbox.sandbox_id, ENVD_PORT), **own}).status_code == 200
    assert edge.get(url, headers={**by_headers(other.sandbox_id, ENVD_PORT), **own}).status_code == 401
    assert edge.get(url, headers=by_headers(other.sandbox_id, ENVD_PORT)).status_code == 401
    rpc = {"Content-Type": "application/json", **by_headers(other.sandbox_id, ENVD_PORT)}
    assert edge.post("/process.Process/List", headers=rpc, content="{}").status_code == 401


@needs_namespaces
def test_the_host_is_unreachable(sandbox):
    addresses = [address for addresses in host_addresses().values() for address in addresses]
    with listening() as port:
        assert all(reachable_from_host(address, port) for address in addresses), "the addresses must be reachable from the host"
        targets = [f"{address}:{port}" for address in [*addresses, GATEWAY]]
        assert reached(sandbox, targets) == []


@needs_namespaces
def test_other_sandboxes_are_unreachable(sandbox, new_sandbox, edge):
    other = new_sandbox()
    server = Guest.start(sandbox)
    assert edge.get("/", headers=server.by_headers()).status_code == 200
    # Each link to a sandbox is a network of two addresses: the host's, and the slot's after it.
    links = [address for name, addresses in host_addresses().items() if name.startswith("hrt") for address in addresses]
    assert links, "there must be links to sandboxes"

    def next_address(address: str) -> str:
        head, last = address.rsplit(".", 1)
        return f"{head}.{int(last) + 1}"

    slots = [next_address(address) for address in links]
    assert any(reachable_from_host(address, server.port) for address in slots), "the host must reach a slot's address"
    targets = [f"{address}:{server.port}" for address in [*links, *slots, GUEST, GATEWAY]]
    assert reached(other, targets) == []
    # Its own address is reachable as soon as a server listens there.
    Guest.start(other)
    assert reached(other, [f"{GUEST}:{server.port}"]) == [f"{GUEST}:{server.port}"]


@needs_namespaces
def test_private_networks_are_unreachable(sandbox, lan):
    assert reachable_from_host(LAN_PEER, lan), "the peer must be reachable from the host"
    assert reached(sandbox, [f"{LAN_PEER}:{lan}", f"{LAN_HOST}:{lan}"]) == []
    # A route or an address that root in the guest adds does not help either.
    sandbox.commands.run(
        f"ip address add {LAN_HOST}/32 dev eth0; ip route replace {LAN_PEER}/32 via {GATEWAY} dev eth0", user="root"
    )
    assert reached(sandbox, [f"{LAN_PEER}:{lan}"]) == []
