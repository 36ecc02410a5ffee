"""Shared fixtures of all journeys: HTTP clients, sandboxes that are killed afterwards, and a check for leftovers."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx
import pytest
from e2b import Sandbox, SandboxException, SandboxQuery

from journeys import API_KEY, API_URL, MARK, SANDBOX_URL, Guest

NewSandbox = Callable[..., Sandbox]


def _sandboxes(stack: list[Sandbox]) -> NewSandbox:
    def create(**options) -> Sandbox:
        options["metadata"] = {**MARK, **options.get("metadata", {})}
        options.setdefault("timeout", 300)
        sandbox = Sandbox.create(**options)
        stack.append(sandbox)
        return sandbox

    return create


def _kill_all(stack: list[Sandbox]) -> None:
    for sandbox in stack:
        # A test may have killed it, or it may have expired: then this has no effect.
        sandbox.kill()


@pytest.fixture
def new_sandbox() -> Iterator[NewSandbox]:
    """A function that creates sandboxes; they are killed after the test."""
    stack: list[Sandbox] = []
    yield _sandboxes(stack)
    _kill_all(stack)


@pytest.fixture(scope="module")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One sandbox for all tests of a file that do not affect each other; the file's `SANDBOX` holds its options."""
    stack: list[Sandbox] = []
    options = getattr(request.module, "SANDBOX", {})
    yield _sandboxes(stack)(timeout=900, metadata={"module": request.module.__name__}, **options)
    _kill_all(stack)


@pytest.fixture
def folder(sandbox: Sandbox) -> str:
    """A folder of the shared sandbox that only this test uses."""
    path = f"/home/user/{uuid4().hex[:12]}"
    assert sandbox.files.make_dir(path)
    return path


@pytest.fixture(scope="session")
def api() -> Iterator[httpx.Client]:
    """HTTP client for the REST API, with the API key."""
    with httpx.Client(base_url=API_URL, headers={"X-API-Key": API_KEY}, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def edge() -> Iterator[httpx.Client]:
    """HTTP client for the edge; each request must add its routing headers."""
    with httpx.Client(base_url=SANDBOX_URL, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def guest(sandbox: Sandbox) -> Guest:
    """The HTTP server of `guest/server.py`, running in the shared sandbox."""
    return Guest.start(sandbox)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fails if a sandbox of the tests exists after all tests."""
    yield
    left = []
    pages = Sandbox.list(query=SandboxQuery(metadata=MARK))
    while pages.has_next:
        left.extend(pages.next_items())
    for info in left:
        try:
            Sandbox.kill(info.sandbox_id)
        except SandboxException as error:
            print(f"killing {info.sandbox_id}: {error}")
    assert not left, f"tests left sandboxes: {[(info.sandbox_id, info.metadata) for info in left]}"
