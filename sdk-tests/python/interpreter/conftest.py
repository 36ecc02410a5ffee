"""Fixtures for journeys with the code interpreter."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from interpreter.sdks import Sdk

# Variables of the shared sandbox.
SANDBOX_VARIABLES = {"SHARED": "of the sandbox"}


@pytest.fixture(scope="session", params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """The SDK with which a test runs."""
    return request.param


@pytest_asyncio.fixture
async def sdk(kind: str) -> AsyncIterator[Sdk]:
    """The SDK; sandboxes created with it are killed after the test."""
    sdk = Sdk(kind)
    yield sdk
    await sdk.kill_all()


@pytest_asyncio.fixture(scope="session")
async def shared_id() -> AsyncIterator[str]:
    """ID of one sandbox for all tests that do not affect each other: its kernels start only once."""
    sdk = Sdk("sync")
    yield (await sdk.create(timeout=1200, envs=SANDBOX_VARIABLES)).sandbox_id
    await sdk.kill_all()


@pytest_asyncio.fixture(scope="session")
async def shared(kind: str, shared_id: str):
    """The shared sandbox, connected with the SDK."""
    return await Sdk(kind).connect(shared_id)
