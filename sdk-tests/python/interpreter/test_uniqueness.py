"""Two sandboxes of one template, both restored from the same memory, must not return the same random values."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from interpreter.sdks import KERNEL_START, Sdk, output

pytestmark = pytest.mark.timeout(240)

# Code that prints values, one per line.
VALUES = {
    "python": """
import random, secrets, tempfile, uuid
import numpy
for value in (random.random(), numpy.random.rand(), numpy.random.default_rng().random(), uuid.uuid4(), uuid.uuid1(),
              secrets.token_hex(8), tempfile.mktemp(), tempfile.mkdtemp()):
    print(value)
""",
    "javascript": """
import { mkdtempSync } from 'fs'
import { randomUUID } from 'crypto'
for (const value of [Math.random(), randomUUID(), crypto.randomUUID(), mkdtempSync('/tmp/name-')]) console.log(value)
""",
    "typescript": "for (const value of [Math.random(), crypto.randomUUID()] as unknown[]) console.log(value)",
    "r": "for (value in c(runif(1), rnorm(1), tempfile(tmpdir = ''))) cat(value, '\\n')",
    "java": """
System.out.println(new java.util.Random().nextLong());
System.out.println(Math.random());
System.out.println(java.util.UUID.randomUUID());
System.out.println(java.io.File.createTempFile("name", ""));
""",
    "bash": "echo $RANDOM-$RANDOM\nmktemp\ncat /proc/sys/kernel/random/uuid",
}


@pytest_asyncio.fixture(scope="module")
async def twins() -> AsyncIterator[list]:
    """Two sandboxes whose first executions these are."""
    sdk = Sdk("async")
    yield list(await asyncio.gather(sdk.create(), sdk.create()))
    await sdk.kill_all()


# interpreter: U1
@pytest.mark.parametrize("language", VALUES)
async def test_two_sandboxes_differ(twins, language):
    runs = [sandbox.run_code(VALUES[language], language=language, timeout=KERNEL_START) for sandbox in twins]
    one, other = [output(execution).split() for execution in await asyncio.gather(*runs)]
    assert len(one) == len(other) >= 2
    assert not set(one) & set(other), f"the same in two sandboxes: {set(one) & set(other)}"
    again = output(await twins[0].run_code(VALUES[language], language=language)).split()
    assert not set(one) & set(again)


# interpreter: U2
async def test_a_seed_of_the_user_stays(twins):
    code = "import random, numpy\nrandom.seed(1); numpy.random.seed(1)"
    await asyncio.gather(*(sandbox.run_code(code) for sandbox in twins))
    runs = [sandbox.run_code("print(random.random(), numpy.random.rand())") for sandbox in twins]
    values = [output(execution) for execution in await asyncio.gather(*runs)]
    assert values == ["0.13436424411240122 0.417022004702574\n"] * 2
