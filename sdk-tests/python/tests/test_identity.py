"""Two sandboxes of one template: the same memory restored twice. What must differ between machines differs."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from e2b import Sandbox

from journeys import MARK

# How far a guest's clock may be from the host's.
CLOCK_OFF_MAX = 2.0

# What must differ, and what it must look like.
FACTS = {
    "machine id": ("cat /etc/machine-id", r"[0-9a-f]{32}"),
    "boot id": ("cat /proc/sys/kernel/random/boot_id", r"[0-9a-f-]{36}"),
    "kernel's uuid": ("cat /proc/sys/kernel/random/uuid", r"[0-9a-f-]{36}"),
    "urandom": ("head -c16 /dev/urandom | od -An -v -tx1 | tr -d ' '", r"[0-9a-f]{32}"),
    "python's secrets": ("python3 -c 'import secrets; print(secrets.token_hex(16))'", r"[0-9a-f]{32}"),
    "python's random": ("python3 -c 'import random; print(random.random())'", r"0\.\d+(e-\d+)?"),
    "python's hash": ("python3 -c 'print(hash(\"text\"))'", r"-?\d+"),
    "node's random": ("node -p 'Math.random()'", r"0\.\d+(e-\d+)?"),
    "openssl": ("openssl rand -hex 16", r"[0-9a-f]{32}"),
    "temporary names": ("mktemp -u", r"/tmp/tmp\.\w{10}"),
    "the shell's random": ("echo $RANDOM $RANDOM $RANDOM", r"\d+ \d+ \d+"),
    "where programs lie": ("head -n 1 /proc/self/maps | cut -d- -f1", r"[0-9a-f]+"),
    "where stacks lie": ("grep -F '[stack]' /proc/self/maps | cut -d- -f1", r"[0-9a-f]+"),
}


@pytest.fixture(scope="module")
def pair():
    with ThreadPoolExecutor(max_workers=2) as pool:
        starts = [pool.submit(Sandbox.create, timeout=600, metadata=MARK) for _ in range(2)]
        sandboxes = [start.result() for start in starts if not start.exception()]
    try:
        assert len(sandboxes) == 2, [start.exception() for start in starts]
        yield sandboxes
    finally:
        for sandbox in sandboxes:
            sandbox.kill()


@pytest.mark.parametrize("fact", FACTS)
def test_what_must_differ_differs(pair, fact):
    command, pattern = FACTS[fact]
    first, second = (sandbox.commands.run(command).stdout.strip() for sandbox in pair)
    assert re.fullmatch(pattern, first) and re.fullmatch(pattern, second), (first, second)
    assert first != second


@pytest.mark.parametrize("fact", ["machine id", "boot id"])
def test_what_must_stay_stays(pair, fact):
    command, _ = FACTS[fact]
    for sandbox in pair:
        told = sandbox.commands.run(command).stdout
        assert told == sandbox.commands.run(command, user="root").stdout
        assert UUID(told.strip()).int != 0


def test_each_is_called_by_its_id(pair):
    for sandbox in pair:
        names = sandbox.commands.run("hostname; uname -n; cat /etc/hostname").stdout.split()
        assert names == [sandbox.sandbox_id] * 3
        addresses = sandbox.commands.run("getent hosts $(hostname)").stdout.split()
        assert addresses[0] in ("127.0.0.1", "127.0.1.1", "::1", "169.254.0.21")
        assert sandbox.sandbox_id in addresses[1:]
        # It complains about a host name that it cannot resolve.
        assert sandbox.commands.run("sudo -n true").stderr == ""


def test_the_clock_is_right_from_the_beginning(pair):
    for sandbox in pair:
        before = time.time()
        inside = float(sandbox.commands.run("date +%s.%N").stdout)
        assert before - CLOCK_OFF_MAX < inside < time.time() + CLOCK_OFF_MAX
