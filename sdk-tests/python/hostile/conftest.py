"""Fixtures of the hostile suite: a measured neighbour, and a hostile tenant."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2b import Sandbox, SandboxQuery

from hostile import server
from hostile.measuring import Measured, Watch
from hostile.tenant import Tenant
from journeys import MARK
from operators import new_team

QUIET_SECONDS = 6.0
# CPU load that an attack causes: a busy client, and a guest with busy processors.
LOOP = "while True: pass"
GUEST_LOAD = "for _ in 1 2 3; do while :; do :; done & done; wait"
SANDBOXES_MAX = 4


@pytest.fixture(scope="session", autouse=True)
def many_descriptors() -> None:
    """Raises the limit of open files, because attacks open thousands of connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(scope="session")
def tenant() -> Iterator[Tenant]:
    """The hostile tenant."""
    if not server.PID:
        pytest.exit("JOURNEYS_SERVER_PID is not set: this test needs a private server, as started by `make sdk-tests`", 4)
    tenant = Tenant(new_team(SANDBOXES_MAX))
    yield tenant
    left = Sandbox.list(query=SandboxQuery(metadata=MARK), api_key=tenant.key).next_items()
    assert not left, f"sandboxes are left: {left}"


@contextmanager
def load(tenant: Tenant) -> Iterator[None]:
    """Causes the CPU load of an attack, without an attack."""
    with tenant.sandbox() as sandbox:
        sandbox.commands.run(GUEST_LOAD, background=True, timeout=0)
        client = subprocess.Popen([sys.executable, "-c", LOOP])
        try:
            yield
        finally:
            client.kill()
            client.wait()


@pytest.fixture(scope="session")
def victim() -> Iterator[Sandbox]:
    """The neighbour's sandbox."""
    sandbox = Sandbox.create(timeout=900, metadata=MARK)
    yield sandbox
    sandbox.kill()


@pytest.fixture(scope="session")
def measured(victim: Sandbox, tenant: Tenant) -> Iterator[Measured]:
    watch = Watch(victim.sandbox_id)
    # One run to warm up, then without load, then under load.
    with watch.measuring(1):
        pass
    with watch.measuring(QUIET_SECONDS) as quiet:
        pass
    with load(tenant), watch.measuring(QUIET_SECONDS) as loaded:
        pass
    for name, seen in (("in quiet", quiet[0]), ("under load", loaded[0])):
        print(f"neighbour {name}: {seen}")
        assert not seen.wrong, seen.wrong[:5]
    measured = Measured(watch, quiet[0], loaded[0])
    yield measured
    watch.close()


@pytest.fixture(scope="session")
def before(measured: Measured) -> dict[str, int]:
    """Open file descriptors and memory of the server's process before the attacks."""
    return {"descriptors": server.descriptors(), "memory": server.memory()}


@pytest.fixture
def unnoticed(measured: Measured, before: dict[str, int]) -> Callable:
    """Context manager: `with unnoticed():` fails if its body affects the neighbour."""
    return measured.unnoticed


@pytest.fixture(scope="module")
def misbehaving(tenant: Tenant) -> Iterator[Sandbox]:
    """A sandbox with a misbehaving server."""
    with tenant.misbehaving() as sandbox:
        yield sandbox
