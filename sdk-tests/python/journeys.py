"""Constants and helper functions of the journeys."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from e2b import Sandbox

Found = TypeVar("Found")


def _from_environment(*names: str) -> str:
    value = next(filter(None, map(os.environ.get, names)), None)
    if not value:
        pytest.exit(f"{names[-1]} is not set: start the journeys with `make sdk-tests`", returncode=4)
    return value


API_KEY = _from_environment("E2B_API_KEY")
# Addresses for requests without an SDK. SDKs may address the server by names instead.
API_URL = _from_environment("JOURNEYS_API_URL", "E2B_API_URL")
SANDBOX_URL = _from_environment("JOURNEYS_SANDBOX_URL", "E2B_SANDBOX_URL")
# Metadata of every sandbox of this run, to find leftovers of the run at its end.
MARK = {"journeys": uuid4().hex}
# Domain for routing by host name. It does not need to exist: the edge uses only the first label.
DOMAIN = "sandboxes.test"
ENVD_PORT = 49983
NOT_FOUND = "The sandbox was not found"
PORT_CLOSED = "The sandbox is running but port is not open"

_GUEST_PROGRAMS = Path(__file__).parent / "guest"


def eventually(poll: Callable[[], Found], within: float, every: float = 0.05) -> Found:
    """Calls `poll` until it returns a true value, and returns that; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = poll()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(every)


def program(name: str) -> str:
    """Returns the source of a guest program."""
    return (_GUEST_PROGRAMS / name).read_text()


def host(port: int, sandbox_id: str) -> str:
    """Returns the host name of a sandbox's port."""
    return f"{port}-{sandbox_id}.{DOMAIN}"


def by_headers(sandbox_id: str, port: int) -> dict[str, str]:
    """Returns headers for routing by sandbox ID and port."""
    return {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)}


def by_host(sandbox_id: str, port: int) -> dict[str, str]:
    """Returns headers for routing by host name."""
    return {"Host": host(port, sandbox_id)}


def edge_address() -> tuple[str, int]:
    """Returns address and port of the edge."""
    url = urlsplit(SANDBOX_URL)
    assert url.hostname and url.port
    return url.hostname, url.port


@dataclass(frozen=True)
class Guest:
    """Server that runs in a sandbox."""

    sandbox: Sandbox
    port: int

    @classmethod
    def start(cls, sandbox: Sandbox, port: int = 8000, name: str = "server.py") -> "Guest":
        """Starts a program from the folder `guest`, and waits until it listens."""
        sandbox.files.write(f"/home/user/{name}", program(name))
        handle = sandbox.commands.run(f"python3 {name} {port}", background=True, timeout=0)
        # The program prints a line once it listens, so no polling is needed.
        for stdout, stderr, _ in handle:
            if stdout and "listening" in stdout:
                handle.disconnect()
                return cls(sandbox, port)
            assert not stderr, stderr
        raise AssertionError("the server in the guest exited")

    def by_headers(self) -> dict[str, str]:
        return by_headers(self.sandbox.sandbox_id, self.port)

    def by_host(self) -> dict[str, str]:
        return by_host(self.sandbox.sandbox_id, self.port)
