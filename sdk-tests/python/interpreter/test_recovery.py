"""Interruption, death of kernels and of the server, floods, and hostile code: the next execution works."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from e2b_code_interpreter import TimeoutException

from interpreter.sdks import KERNEL_START, SLOWNESS, Sdk, output, text
from journeys import SANDBOX_URL, by_headers

pytestmark = pytest.mark.timeout(360)

PORT = 49999
# Time until the next execution of an interrupted or restarted context ends.
NEXT = 10 * SLOWNESS
# Time until the server is healthy again after it was killed.
HEALTHY = 30 * SLOWNESS
MIB = 1 << 20


@pytest_asyncio.fixture(scope="module")
async def victim_id() -> AsyncIterator[str]:
    """ID of one sandbox for all tests of this file: each leaves a default context that works."""
    sdk = Sdk("sync")
    yield (await sdk.create(timeout=1200)).sandbox_id
    await sdk.kill_all()


@pytest_asyncio.fixture
async def victim(kind: str, victim_id: str):
    """That sandbox, connected with both SDKs."""
    return await Sdk(kind).connect(victim_id)


@pytest_asyncio.fixture
async def one(victim_id: str):
    """That sandbox, connected with one SDK, for faults whose handling does not depend on the SDK."""
    return await Sdk("async").connect(victim_id)


def request(sandbox, method: str, path: str, **options) -> httpx.Response:
    """Sends a request to the server in the sandbox without an SDK."""
    headers = {**by_headers(sandbox.sandbox_id, PORT), **options.pop("headers", {})}
    return httpx.request(method, f"{SANDBOX_URL}{path}", headers=headers, timeout=30, **options)


def is_healthy(sandbox) -> bool:
    """Returns true if the server in the sandbox is healthy."""
    try:
        health = request(sandbox, "GET", "/health")
    except httpx.TransportError:
        return False
    return health.status_code == 200 and health.json() == "OK"


async def server_memory(sandbox) -> int:
    """Returns the largest memory that the server of the sandbox used so far, in bytes."""
    found = await sandbox.commands.run("cat /proc/$(pgrep -x hearth-interpre)/status", user="root")
    [line] = [line for line in found.stdout.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


async def next_execution(sandbox, within: float = NEXT) -> None:
    """Checks that the default context works within a time."""
    assert text(await sandbox.run_code("1 + 1", timeout=within)) == "2"


# interpreter: R1, F5
@pytest.mark.parametrize("code", ["import time; time.sleep(300)", "while True: pass"])
async def test_after_a_timeout_of_the_client_the_next_execution_works(victim, code):
    await victim.run_code("kept = 42")
    with pytest.raises(TimeoutException, match="Execution timed out"):
        await victim.run_code(code, timeout=3)
    # At once, which is harder for the server than some seconds later.
    assert text(await victim.run_code("kept", timeout=NEXT)) == "42"


# interpreter: R3
async def test_the_timeout_is_of_the_whole_request_and_zero_disables_it(victim):
    since = time.monotonic()
    with pytest.raises(TimeoutException):
        await victim.run_code("import time\nfor _ in range(300): print('.', flush=True); time.sleep(0.2)", timeout=2)
    assert time.monotonic() - since < 2 + NEXT
    assert output(await victim.run_code("import time; time.sleep(4); print('done')", timeout=0)) == "done\n"


# interpreter: R2
@pytest.mark.parametrize("killed", ["hearth-interpreter", "ipykernel"])
async def test_a_killed_process_comes_back(victim, killed):
    await next_execution(victim)
    # The brackets exclude the shell that runs this command.
    await victim.commands.run(f"pkill -KILL -f '{killed[:-1]}[{killed[-1]}]'", user="root")
    # The server does not listen at first, and then replies only after its first contexts have started.
    deadline = time.monotonic() + HEALTHY
    while not is_healthy(victim):
        assert time.monotonic() < deadline, "the server is not healthy"
        await asyncio.sleep(0.1)
    await next_execution(victim, HEALTHY)


# interpreter: F1
async def test_an_exit_of_the_kernel_is_reported(one):
    execution = await one.run_code("import os; os._exit(1)", timeout=HEALTHY)
    assert (execution.error.name, execution.error.value) == ("ContextRestarting", "Context was restarted")
    execution = await one.run_code("x", timeout=HEALTHY)
    assert execution.error.name == "NameError" and execution.execution_count == 1


# interpreter: F2
async def test_a_kernel_without_memory_is_reported(one):
    execution = await one.run_code("blocks = []\nwhile True: blocks.append(b'x' * (64 << 20))", timeout=120)
    assert execution.error.name in ("ContextRestarting", "MemoryError"), execution.error
    await next_execution(one, HEALTHY)
    assert is_healthy(one)


# interpreter: F3
async def test_a_flood_of_output_is_complete_and_not_stored(one):
    before = await server_memory(one)
    length = 0

    def count(message):
        nonlocal length
        length += len(message.line)

    code = "for _ in range(100): print('x' * ((1 << 20) - 1))"
    execution = await one.run_code(code, on_stdout=count, timeout=60 * SLOWNESS)
    output(execution)
    assert length == 100 * MIB
    grown = await server_memory(one) - before
    assert grown < 40 * MIB, f"the server grew by {grown / MIB:.1f} MiB"
    await next_execution(one)


# interpreter: F4
async def test_many_small_outputs_arrive_in_order(one):
    execution = await one.run_code("for number in range(10_000): print(number, flush=True)", timeout=60 * SLOWNESS)
    assert output(execution) == "".join(f"{number}\n" for number in range(10_000))
    await next_execution(one)


# interpreter: F7
async def test_unusual_characters_in_code_and_output(one):
    execution = await one.run_code("x = 1\0\nx")
    assert execution.error.name in ("SyntaxError", "ValueError") and "null" in execution.error.value, execution.error
    signs = "\u2028\u2029\u0085\x0b\x0c\x1c😀é"
    written = "".join(f"\\U{ord(sign):08x}" for sign in signs)
    assert output(await one.run_code(f"print('{written}')")) == f"{signs}\n"
    assert output(await one.run_code("print('\u2028😀é')")) == "\u2028😀é\n"
    assert text(await one.run_code("'😀é' + chr(0x2028)")).startswith("😀é")
    await next_execution(one)


# interpreter: F8
@pytest.mark.parametrize("body", [b'{"code": "\xff\xfe"}', b'{"code": "print(1)\\ud800"}', b'{"code": ', b"\0"])
async def test_requests_that_are_not_unicode_are_rejected(one, body):
    answer = request(one, "POST", "/execute", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["detail"], answer.text
    await next_execution(one)


# interpreter: F9
@pytest.mark.parametrize(
    "language, code",
    [
        ("python", "!printf 'a\\377b\\n'"),
        ("bash", "printf 'a\\377b\\n'"),
        ("js", "process.stdout.write(Buffer.from([97, 255, 98, 10]))"),
    ],
)
async def test_output_that_is_not_unicode_arrives(one, language, code):
    execution = await one.run_code(code, language=language, timeout=KERNEL_START)
    assert "a\ufffdb" in output(execution)
