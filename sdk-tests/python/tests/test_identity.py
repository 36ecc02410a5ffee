"""Identity of two sandboxes of one template: the same memory is restored twice, but IDs and random numbers must differ."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from e2b import Sandbox

from journeys import MARK

# Maximum difference of the guest's clock from the host's, in seconds.
CLOCK_OFF_MAX = 2.0

# Facts that must differ: a command, and the pattern of its output.
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
    "address of programs": ("head -n 1 /proc/self/maps | cut -d- -f1", r"[0-9a-f]+"),
    "address of stacks": ("grep -F '[stack]' /proc/self/maps | cut -d- -f1", r"[0-9a-f]+"),
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
def test_facts_differ_between_sandboxes(pair, fact):
    command, pattern = FACTS[fact]
    first, second = (sandbox.commands.run(command).stdout.strip() for sandbox in pair)
    assert re.fullmatch(pattern, first) and re.fullmatch(pattern, second), (first, second)
    assert first != second


@pytest.mark.parametrize("fact", ["machine id", "boot id"])
def test_ids_do_not_change_within_a_sandbox(pair, fact):
    command, _ = FACTS[fact]
    for sandbox in pair:
        output = sandbox.commands.run(command).stdout
        assert output == sandbox.commands.run(command, user="root").stdout
        assert UUID(output.strip()).int != 0


def test_the_host_name_is_the_sandbox_id(pair):
    for sandbox in pair:
        names = sandbox.commands.run("hostname; uname -n; cat /etc/hostname").stdout.split()
        assert names == [sandbox.sandbox_id] * 3
        addresses = sandbox.commands.run("getent hosts $(hostname)").stdout.split()
        assert addresses[0] in ("127.0.0.1", "127.0.1.1", "::1", "169.254.0.21")
        assert sandbox.sandbox_id in addresses[1:]
        # sudo prints a warning if it cannot resolve the host name.
        assert sandbox.commands.run("sudo -n true").stderr == ""


def test_the_clock_is_correct(pair):
    for sandbox in pair:
        before = time.time()
        inside = float(sandbox.commands.run("date +%s.%N").stdout)
        assert before - CLOCK_OFF_MAX < inside < time.time() + CLOCK_OFF_MAX
