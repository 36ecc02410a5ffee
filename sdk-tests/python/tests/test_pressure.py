"""Resource pressure: the guest daemon still replies when programs use all memory or CPU."""

import json
import re
import socket
import struct

import pytest
from e2b import AuthenticationException, CommandExitException, SandboxException

from journeys import ENVD_PORT, by_headers, edge_address, eventually, program

# Larger than the guest's memory.
GREEDY = "python3 -c 'x = [bytearray(16 << 20) for _ in range(1000)]'"
BUSY_LOOPS = 16


def test_out_of_memory_kills_programs_and_not_the_daemon(sandbox):
    greedy = sandbox.commands.run(GREEDY, background=True, timeout=0)
    assert sandbox.is_running()
    with pytest.raises(CommandExitException) as ended:
        greedy.wait()
    # The shell may report its child's death (137), or be killed with it (-1).
    assert ended.value.exit_code in (-1, 137)
    assert sandbox.commands.run("echo still here").stdout == "still here\n"


def test_out_of_memory_does_not_kill_other_commands(sandbox):
    neighbour = "python3 -c 'import time; used = bytearray(50 << 20); print(\"used\", flush=True); time.sleep(600)'"
    neighbour = sandbox.commands.run(neighbour, background=True, timeout=0)
    assert next(iter(neighbour))[0] == "used\n"
    with pytest.raises(CommandExitException) as ended:
        sandbox.commands.run(GREEDY, timeout=120)
    assert ended.value.exit_code in (-1, 137)
    assert neighbour.pid in [process.pid for process in sandbox.commands.list()]
    assert neighbour.kill()


# The daemon waits for half a minute, and then the test reads megabytes.
@pytest.mark.timeout(240)
def test_a_client_that_never_reads_does_not_block_others(sandbox):
    last = 3_000_000
    process = {"cmd": "/bin/bash", "args": ["-c", f"seq 1 {last}; touch /tmp/counted"]}
    request = json.dumps({"process": process, "stdin": False}).encode()
    body = struct.pack(">BI", 0, len(request)) + request
    headers = {
        **by_headers(sandbox.sandbox_id, ENVD_PORT),
        "Host": "sandbox",
        "X-Access-Token": sandbox._envd_access_token,
        "Content-Type": "application/connect+json",
        "Content-Length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(edge_address(), timeout=60) as connection:
        connection.sendall(f"POST /process.Process/Start HTTP/1.1\r\n{head}\r\n".encode() + body)
        begun = b""
        while (found := re.search(rb'"pid":(\d+)', begun)) is None:
            begun += connection.recv(1024)
        follower = sandbox.commands.connect(int(found.group(1)), timeout=0)
        output = "".join(stdout or "" for stdout, _, _ in follower)
        assert output.endswith(f"\n{last}\n")
        assert sandbox.files.exists("/tmp/counted")
        # After the output sent so far, the client gets the reason for the end of its stream.
        while b'"code":"aborted"' not in begun:
            chunk = connection.recv(1 << 20)
            assert chunk, begun
            begun = begun[-100:] + chunk


def test_the_daemon_replies_when_all_cpus_are_busy(sandbox):
    loops = "for _ in $(seq %d); do while :; do :; done & done; wait" % BUSY_LOOPS
    busy = sandbox.commands.run(loops, background=True, timeout=0)
    for _ in range(3):
        assert sandbox.is_running()
        sandbox.files.write("/tmp/busy", "text")
        assert sandbox.files.read("/tmp/busy") == "text"
    assert sandbox.commands.run("echo still here").stdout == "still here\n"
    # One kill terminates all loops.
    assert busy.kill()
    left = sandbox.commands.run("ps -eo args | grep -c '[w]hile :; do' || true").stdout
    assert left == "0\n"


def test_a_killed_daemon_restarts_with_the_same_identity(sandbox):
    before = sandbox.commands.run("hostname; echo $E2B_SANDBOX_ID").stdout
    with pytest.raises(SandboxException):
        sandbox.commands.run("pkill -9 -x envd; sleep 60", user="root")

    def again():
        # The new daemon rejects all calls until the host has initialized it.
        try:
            return sandbox.commands.run("hostname; echo $E2B_SANDBOX_ID").stdout
        except (SandboxException, AuthenticationException):
            return None

    assert eventually(again, within=60) == before


def test_a_restore_closes_connections_to_the_outside(new_sandbox):
    sandbox = new_sandbox()
    sandbox.files.write("/tmp/restored.py", program("restored.py"))
    token = sandbox._envd_access_token
    # It also closes the SDK's own stream, so the program writes the outcome to a file, which appears once complete.
    command = f"python3 /tmp/restored.py {token} > /tmp/begun && mv /tmp/begun /tmp/outcome; sleep 60"
    with pytest.raises(SandboxException):
        sandbox.commands.run(command, user="root")
    eventually(lambda: sandbox.files.exists("/tmp/outcome"), within=60)
    outcome = json.loads(sandbox.files.read("/tmp/outcome"))
    assert outcome["status"] == 204
    assert outcome["before"] == {"outward": "alive", "inward": "alive"}
    assert outcome["after"]["inward"] == "alive"
    assert outcome["after"]["outward"] in ("ConnectionAbortedError", "ConnectionResetError", "BrokenPipeError")
    assert outcome["new_generation"]
