"""Addresses, tokens, and the end of a sandbox, with the synchronous and the asynchronous SDK."""

import asyncio
import os
import time

import httpx
import pytest
from e2b_code_interpreter import SandboxException, TimeoutException

from interpreter.sdks import text
from journeys import SANDBOX_URL, by_headers

pytestmark = pytest.mark.timeout(180)

PORT = 49999


# interpreter: T1, T3
async def test_addresses_and_a_second_connection(sdk):
    sandbox = await sdk.create()
    domain = os.environ.get("E2B_DOMAIN")
    base = f"https://{PORT}-{sandbox.sandbox_id}.{domain}" if domain else SANDBOX_URL
    assert sandbox._jupyter_url == base
    assert text(await sandbox.run_code("x = 1; x")) == "1"
    again = await sdk.connect(sandbox.sandbox_id)
    assert text(await again.run_code("x + 1")) == "2"


# interpreter: T1
async def test_the_option_replaces_the_address(sdk, monkeypatch):
    monkeypatch.delenv("E2B_SANDBOX_URL", raising=False)
    sandbox = await sdk.create(sandbox_url=SANDBOX_URL)
    assert sandbox._jupyter_url == SANDBOX_URL
    assert text(await sandbox.run_code("1 + 1")) == "2"


# interpreter: B2, C2
async def test_counts_and_contexts_of_a_new_sandbox(sdk):
    sandbox = await sdk.create()
    assert [context.language for context in await sandbox.list_code_contexts()] == ["python", "javascript"]
    assert (await sandbox.run_code("x = 1")).execution_count == 1
    assert (await sandbox.run_code("x += 1; x")).execution_count == 2


# interpreter: T2
async def test_private_ingress(sdk):
    sandbox = await sdk.create(network={"allow_public_traffic": False})
    assert sandbox.traffic_access_token
    # By addresses in any case: the edge also routes names by these headers.
    stranger = httpx.post(f"{SANDBOX_URL}/execute", json={"code": "1"}, headers=by_headers(sandbox.sandbox_id, PORT))
    assert stranger.status_code == 403, stranger.text
    assert text(await sandbox.run_code("1 + 1")) == "2"
    context = await sandbox.create_code_context()
    assert text(await sandbox.run_code("y = 3; y", context=context)) == "3"
    assert context.id in [listed.id for listed in await sandbox.list_code_contexts()]
    await sandbox.restart_code_context(context)
    assert (await sandbox.run_code("y", context=context)).error.name == "NameError"
    await sandbox.remove_code_context(context.id)
    assert context.id not in [listed.id for listed in await sandbox.list_code_contexts()]


# interpreter: T4
async def test_a_kill_during_an_execution_is_named(sdk):
    sandbox = await sdk.create()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    code = "print('started', flush=True)\nimport time\ntime.sleep(300)"
    running = asyncio.create_task(
        sandbox.run_code(code, on_stdout=lambda _: loop.call_soon_threadsafe(started.set), timeout=120)
    )
    await asyncio.wait_for(started.wait(), 60)
    since = time.monotonic()
    assert await sandbox.kill()
    with pytest.raises(TimeoutException, match="The sandbox was killed while the request was in progress"):
        await running
    assert time.monotonic() - since < 30
    with pytest.raises((TimeoutException, SandboxException)):
        await sandbox.run_code("1")
