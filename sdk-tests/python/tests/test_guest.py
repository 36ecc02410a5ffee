"""Platform features for programs in a sandbox: environment, metrics, events address, and reachable ports."""

import json
import socket
import struct
import time
from datetime import timedelta

import pytest
from e2b import SandboxException

from journeys import ENVD_PORT, by_headers, edge_address, eventually

SANDBOX = {"envs": {"TEAM": "blue", "BOTH": "sandbox"}}
# Listen addresses of a server: all, loopback, another loopback address, the host name.
ADDRESSES = ["0.0.0.0", "::", "127.0.0.1", "localhost", "::1", "127.0.0.5", "$(hostname)"]
# The daemon checks for new listeners every second; the rest is for a busy machine.
FORWARDED_WITHIN = 20
# Includes time for a busy machine.
FIRST_SAMPLE_WITHIN = 30


@pytest.fixture
def run(sandbox):
    return lambda command, **options: sandbox.commands.run(command, **options).stdout


def with_token(sandbox):
    return {**by_headers(sandbox.sandbox_id, ENVD_PORT), "X-Access-Token": sandbox._envd_access_token}


# envd: C10
def test_every_command_gets_the_sandbox_s_environment(sandbox, run):
    assert run('echo "$TEAM $BOTH"') == "blue sandbox\n"
    assert run("python3 -c 'import os; print(os.environ[\"TEAM\"])'", user="root") == "blue\n"
    assert run('echo "$TEAM $BOTH"', envs={"BOTH": "command"}) == "blue command\n"
    assert run("echo $BOTH") == "sandbox\n"
    assert run("echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID").split() == [
        "true",
        sandbox.sandbox_id,
        sandbox.get_info().template_id,
    ]


# envd: X9
def test_the_envs_route_returns_the_environment_inside(sandbox, run):
    ask = f"curl -s -w '\\n%{{http_code}}' http://localhost:{ENVD_PORT}/envs"
    body, status = run(f'{ask} -H "X-Access-Token: $TOKEN"', envs={"TOKEN": sandbox._envd_access_token}).rsplit("\n", 1)
    environment = json.loads(body)
    assert status == "200"
    assert {"TEAM": "blue", "BOTH": "sandbox", "E2B_SANDBOX": "true"}.items() <= environment.items()
    assert environment["E2B_SANDBOX_ID"] == sandbox.sandbox_id
    assert "TOKEN" not in environment, "a command's variables must not change the sandbox's environment"
    assert run(ask).rsplit("\n", 1)[1] == "401"


# envd: X1
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_server_is_reachable_on_any_listen_address(sandbox, edge, folder, address):
    port = 8100 + ADDRESSES.index(address)
    sandbox.files.write(f"{folder}/index.html", f"on {address}")
    command = f"python3 -m http.server {port} --bind {address} --directory {folder}"
    server = sandbox.commands.run(command, background=True, timeout=0)
    headers = by_headers(sandbox.sandbox_id, port)
    eventually(lambda: edge.get("/", headers=headers).text == f"on {address}", within=FORWARDED_WITHIN)
    server.kill()
    eventually(lambda: edge.get("/", headers=headers).status_code == 502, within=FORWARDED_WITHIN)


ONLY_IPV6 = """
import http.server, socket
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()
Server(("::", 8121), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


# envd: X1
def test_a_server_on_ipv6_only_is_reachable(sandbox, edge, folder):
    sandbox.files.write(f"{folder}/index.html", "on IPv6")
    sandbox.files.write(f"{folder}/server.py", ONLY_IPV6)
    server = sandbox.commands.run("python3 server.py", cwd=folder, background=True, timeout=0)
    headers = by_headers(sandbox.sandbox_id, 8121)
    eventually(lambda: edge.get("/", headers=headers).text == "on IPv6", within=FORWARDED_WITHIN)
    server.kill()


LISTENER = """
import sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
for line in sys.stdin:
    if line == "open\\n":
        server = ThreadingHTTPServer(("127.0.0.1", 8120), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.shutdown()
        server.server_close()
"""


# envd: X1
def test_a_program_that_listens_again_is_reachable_again(sandbox, edge, folder):
    sandbox.files.write(f"{folder}/listener.py", LISTENER)
    server = sandbox.commands.run(f"python3 {folder}/listener.py", background=True, stdin=True, timeout=0)
    headers = by_headers(sandbox.sandbox_id, 8120)
    for _ in range(2):
        for command, status in (("open\n", 204), ("close\n", 502)):
            server.send_stdin(command)
            eventually(lambda: edge.get("/", headers=headers).status_code == status, within=FORWARDED_WITHIN)
    server.kill()


# envd: X2
def test_the_events_address_returns_the_sandbox_id(sandbox, run):
    for user in ("user", "root"):
        assert json.loads(run("curl -s -m 20 $E2B_EVENTS_ADDRESS/me", user=user)) == {"sandboxID": sandbox.sandbox_id}


# envd: X3
def test_certificates_are_on_a_tmpfs(run):
    assert run("findmnt -n -o FSTYPE /etc/ssl/certs") == "tmpfs\n"
    count = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    assert int(run(f"python3 -c '{count}'")) > 50, "the system's certificates are missing"


# envd: X8
def test_metrics_are_plausible(sandbox, run, edge):
    def metrics():
        response = edge.get("/metrics", headers=with_token(sandbox))
        assert response.status_code == 200 and response.headers["Content-Type"].startswith("application/json")
        return response.json()

    # The percentage covers the time since the previous call, which may be the host's and very recent. Therefore the
    # guest must be busy for the whole test.
    busy = sandbox.commands.run("while :; do :; done", background=True)
    eventually(lambda: metrics()["cpu_used_pct"] > 0, within=20)
    now = metrics()
    assert 0 <= now.pop("cpu_used_pct") <= 100
    busy.kill()
    assert set(now) == {
        *(
            "ts",
            "cpu_count",
            "mem_total",
            "mem_used",
            "mem_cache",
            "mem_total_mib",
            "mem_used_mib",
            "disk_used",
            "disk_total",
        )
    }
    assert all(type(value) is int for value in now.values()), now
    info = sandbox.get_info()
    assert now["cpu_count"] == info.cpu_count == int(run("nproc"))
    assert abs(now["ts"] - time.time()) < 5
    assert 0.7 * info.memory_mb < now["mem_total_mib"] == now["mem_total"] // 2**20 <= info.memory_mb
    assert 0 < now["mem_used"] < now["mem_total"] and 0 < now["mem_cache"] < now["mem_total"]
    assert now["mem_used_mib"] == now["mem_used"] // 2**20
    assert 0 < now["disk_used"] < now["disk_total"] == int(run("df --output=size -B1 / | tail -1"))
    assert edge.get("/metrics", headers=by_headers(sandbox.sandbox_id, ENVD_PORT)).status_code == 401


# envd: X8
def test_the_host_reports_metrics(sandbox):
    first = eventually(sandbox.get_metrics, within=FIRST_SAMPLE_WITHIN)
    # The next sample follows a few seconds later.
    metrics = eventually(lambda: found if len(found := sandbox.get_metrics()) > len(first) else None, within=60)
    info = sandbox.get_info()
    assert metrics[: len(first)] == first
    times = [metric.timestamp for metric in metrics]
    assert times == sorted(set(times)) and times[0] >= info.started_at
    for metric in metrics:
        assert metric.cpu_count == info.cpu_count and 0 <= metric.cpu_used_pct <= 100
        assert 0.7 * info.memory_mb * 2**20 < metric.mem_total <= info.memory_mb * 2**20
        assert 0 < metric.mem_used < metric.mem_total and 0 < metric.mem_cache < metric.mem_total
        assert 0 < metric.disk_used < metric.disk_total
    # The range is exact.
    before = info.started_at - timedelta(seconds=2)
    assert sandbox.get_metrics(start=before - timedelta(hours=1), end=before) == []
    assert sandbox.get_metrics(start=times[1])[-1].timestamp >= times[-1]
    with pytest.raises(SandboxException, match="400"):
        sandbox.get_metrics(start=times[1], end=before)


def test_a_killed_client_leaves_nothing_behind(sandbox, run):
    clients = 10
    request = json.dumps({"path": "/home/user"}).encode()
    body = struct.pack(">BI", 0, len(request)) + request
    headers = {
        **with_token(sandbox),
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
        "Content-Length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def watching():
        connection = socket.create_connection(edge_address(), timeout=20)
        head_line = "POST /filesystem.Filesystem/WatchDir HTTP/1.1"
        connection.sendall(f"{head_line}\r\nHost: sandbox\r\n{head}\r\n".encode() + body)
        response = b""
        while b'"start"' not in response:
            response += connection.recv(65536)
        return connection

    def left():
        """Returns the numbers of the daemon's connections and of its inotify watches."""
        connections = run(f"ss -Htn state established '( sport = :{ENVD_PORT} )' | wc -l")
        watches = run("cat /proc/$(pgrep -o -x envd)/fdinfo/* 2>/dev/null | grep -c ^inotify || true", user="root")
        return int(connections), int(watches)

    connections, watches = left()
    open_ones = [watching() for _ in range(clients)]
    now = left()
    assert now[0] >= clients and now[1] == watches + clients, now
    for connection in open_ones:
        # Reset the connection instead of closing it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def gone():
        now = left()
        # One more connection is allowed: that of this check.
        return now[0] <= connections + 1 and now[1] == watches

    eventually(gone, within=20, every=0.5)
