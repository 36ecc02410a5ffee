"""Lifecycle of sandboxes: create, info, list, connect, timeout, expiry, kill."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from uuid import uuid4

import pytest
from e2b import (
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from packaging.version import Version

from journeys import ENVD_PORT, NOT_FOUND, by_headers, eventually

# Maximum delay until a test sees an expiry. The server is exact, but polling takes time on a busy machine.
LATE_MAX = timedelta(seconds=1.5)


def ids(infos):
    return [info.sandbox_id for info in infos]


def all_pages(**options):
    pages = Sandbox.list(**options)
    found = []
    while pages.has_next:
        found.append(pages.next_items())
    return found


def is_unknown(sandbox_id):
    """Returns true once a stopping sandbox no longer exists. Until then, connecting fails with 409."""
    with pytest.raises(SandboxException) as caught:
        Sandbox.connect(sandbox_id)
    if isinstance(caught.value, SandboxNotFoundException):
        return True
    assert caught.value.status_code == 409, caught.value
    return False


def test_information_about_a_new_sandbox(new_sandbox):
    metadata = {"purpose": "tell", "ümläut & = %": "a b+c%20d"}
    sandbox = new_sandbox(metadata=metadata, timeout=120)
    assert re.fullmatch("[a-z0-9]+", sandbox.sandbox_id)
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.state == SandboxState.RUNNING
    assert info.name == "base"
    assert re.fullmatch("[a-z0-9]+", info.template_id) and info.template_id != "base"
    assert metadata.items() <= info.metadata.items()
    assert info.cpu_count >= 1 and info.memory_mb >= 256
    assert Version(info.envd_version) >= Version("0.6.4")
    assert info.started_at.tzinfo and info.end_at.tzinfo
    assert abs(info.end_at - info.started_at - timedelta(seconds=120)) < timedelta(seconds=1)
    assert info.lifecycle == {"on_timeout": "kill", "auto_resume": False}
    assert sandbox.is_running()


def test_the_default_timeout_is_five_minutes(new_sandbox):
    info = new_sandbox(timeout=None).get_info()
    assert abs(info.end_at - info.started_at - timedelta(seconds=300)) < timedelta(seconds=1)


def test_create_accepts_template_id_and_tag(new_sandbox, sandbox):
    template_id = sandbox.get_info().template_id
    for reference in (template_id, "base:default", "BASE"):
        assert new_sandbox(template=reference).get_info().template_id == template_id


def test_lists_filter_order_and_page(new_sandbox):
    group = {"group": uuid4().hex, "what & why = 50%": "a+b c"}
    before = datetime.now(timezone.utc)
    first = new_sandbox(metadata={**group, "n": "1"})
    second = new_sandbox(metadata={**group, "n": "2"})
    query = SandboxQuery(metadata=group)

    newest_first = [second.sandbox_id, first.sandbox_id]
    assert [ids(page) for page in all_pages(query=query)] == [newest_first]
    assert [ids(page) for page in all_pages(query=query, limit=1)] == [[id] for id in newest_first]
    assert [ids(page) for page in all_pages(query=query, order="asc")] == [newest_first[::-1]]
    assert [ids(page) for page in all_pages(query=query, order="asc", limit=1)] == [[id] for id in newest_first[::-1]]

    def listed(**more):
        return [id for page in all_pages(query=SandboxQuery(**{"metadata": group, **more})) for id in ids(page)]

    assert listed(metadata={**group, "n": "1"}) == [first.sandbox_id]
    assert listed(metadata={**group, "n": "3"}) == []
    assert listed(state=[SandboxState.RUNNING]) == newest_first
    assert listed(state=[SandboxState.PAUSED]) == []
    assert listed(template="base") == newest_first
    assert listed(template=f"missing-{uuid4().hex[:8]}") == []
    assert listed(started_after=before) == newest_first
    assert listed(started_after=second.get_info().started_at) == [second.sandbox_id]

    info = Sandbox.list(query=SandboxQuery(metadata={**group, "n": "1"})).next_items()[0]
    assert (info.state, info.name, info.metadata["n"]) == (SandboxState.RUNNING, "base", "1")
    assert (info.started_at, info.end_at) == (first.get_info().started_at, first.get_info().end_at)


def test_environment_of_a_sandbox(new_sandbox):
    sandbox = new_sandbox(envs={"GREETING": "hello world", "QUOTED": "a\"b'c$d\nnew line"})
    output = sandbox.commands.run('printf "%s|%s" "$GREETING" "$QUOTED"').stdout
    assert output == "hello world|a\"b'c$d\nnew line"
    assert sandbox.commands.run('echo "$GREETING"', envs={"GREETING": "bye"}).stdout == "bye\n"
    assert sandbox.commands.run('echo "$GREETING"', user="root").stdout == "hello world\n"
    output = sandbox.commands.run('echo "$E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID"').stdout.split()
    assert output == ["true", sandbox.sandbox_id, sandbox.get_info().template_id]


def test_sandboxes_of_one_template_draw_different_random_numbers(new_sandbox):
    with ThreadPoolExecutor(max_workers=3) as pool:
        sandboxes = list(pool.map(lambda _: new_sandbox(timeout=120), range(3)))
    assert len({sandbox.sandbox_id for sandbox in sandboxes}) == 3
    # The same memory was restored three times: random numbers must differ, and the clock must be correct.
    command = "cat /proc/sys/kernel/random/uuid; python3 -c 'import random; print(random.random())'; date +%s"
    outputs = [sandbox.commands.run(command).stdout.split() for sandbox in sandboxes]
    assert len({uuid for uuid, _, _ in outputs}) == 3
    assert len({number for _, number, _ in outputs}) == 3
    assert all(abs(int(clock) - time.time()) < 10 for _, _, clock in outputs)


def test_connecting_to_a_running_sandbox(new_sandbox):
    sandbox = new_sandbox(timeout=300)
    sandbox.files.write("note", "left by the first")
    end_at = sandbox.get_info().end_at

    same = Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert same.files.read("note") == "left by the first"
    assert same.commands.run("echo there").stdout == "there\n"
    assert sandbox.get_info().end_at == end_at, "connecting must not shorten the lifetime"

    sandbox.connect(timeout=900)
    left = sandbox.get_info().end_at - datetime.now(timezone.utc)
    assert timedelta(seconds=890) < left <= timedelta(seconds=901)


def test_a_timeout_can_be_changed(new_sandbox):
    sandbox = new_sandbox(timeout=300)
    for seconds in (60, 600, 120):
        sandbox.set_timeout(seconds)
        left = sandbox.get_info().end_at - datetime.now(timezone.utc)
        assert timedelta(seconds=seconds - 10) < left <= timedelta(seconds=seconds + 1)
    Sandbox.set_timeout(sandbox.sandbox_id, 0)
    eventually(lambda: not sandbox.is_running(), within=3)


def test_a_sandbox_expires_at_its_end_time(new_sandbox, edge):
    sandbox = new_sandbox(timeout=60)
    sandbox.set_timeout(3)
    end_at = sandbox.get_info().end_at
    assert sandbox.is_running()

    def gone():
        return None if sandbox.is_running() else datetime.now(timezone.utc)

    seen = eventually(gone, within=10)
    assert end_at <= seen <= end_at + LATE_MAX
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()
    # While the sandbox stops, these calls get 409, afterwards 404.
    eventually(lambda: is_unknown(sandbox.sandbox_id), within=20)
    with pytest.raises(SandboxNotFoundException):
        sandbox.set_timeout(60)
    assert sandbox.kill() is False
    response = edge.get("/health", headers=by_headers(sandbox.sandbox_id, ENVD_PORT))
    assert (response.status_code, response.json()["message"]) == (502, NOT_FOUND)


# envd: X4
def test_a_killed_sandbox_is_not_found_immediately(new_sandbox, edge):
    sandbox = new_sandbox()
    headers = by_headers(sandbox.sandbox_id, ENVD_PORT)
    assert edge.get("/health", headers=headers).status_code == 204
    assert sandbox.kill() is True
    response = edge.get("/health", headers=headers)
    assert response.status_code == 502
    assert response.json() == {"sandboxId": sandbox.sandbox_id, "message": NOT_FOUND, "code": 502}
    assert sandbox.is_running() is False
    assert sandbox.kill() is False
    assert Sandbox.kill(sandbox.sandbox_id) is False
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()
    with pytest.raises(SandboxNotRunningException):
        sandbox.commands.run("true")
    with pytest.raises(SandboxNotRunningException):
        sandbox.files.read("note")
    listed = [id for page in all_pages() for id in ids(page)]
    assert sandbox.sandbox_id not in listed


# envd: C16
def test_a_kill_terminates_a_running_command(new_sandbox):
    sandbox = new_sandbox()
    handle = sandbox.commands.run("echo started; sleep 300", background=True, timeout=0)
    stdout, _, _ = next(iter(handle))
    assert stdout == "started\n"
    failures = []

    def wait():
        try:
            handle.wait()
        except TimeoutException as error:
            failures.append(error)

    # A daemon thread, so a hanging stream does not block pytest's exit.
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert sandbox.kill()
    waiting.join(timeout=20)
    assert not waiting.is_alive(), "the stream is still open after the kill"
    assert "killed or reached its end of life" in str(failures[0]) or NOT_FOUND in str(failures[0])


def test_the_context_manager_kills_the_sandbox(new_sandbox):
    with new_sandbox() as sandbox:
        assert sandbox.commands.run("echo in").stdout == "in\n"
    assert not sandbox.is_running()
