"""The synchronous and the asynchronous code interpreter SDK with the same methods, so that each test runs with both."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import e2b_code_interpreter as official

from journeys import MARK


def _is_emulated() -> bool:
    """Returns true if the private server runs its guests without hardware virtualization."""
    manifests = Path(os.environ.get("HEARTH_DATA_DIR", "/nonexistent")).glob("artifacts/*/manifest.json")
    return any(json.loads(manifest.read_text())["accelerator"] == "tcg" for manifest in manifests)


# Factor for time limits. An emulated guest is about ten times as slow, so that a kernel needs ten seconds to start instead
# of one; on busy processors half a minute.
SLOWNESS = 4 if _is_emulated() else 1
# Time in which a kernel of any language starts.
KERNEL_START = 30 * SLOWNESS


class Threaded:
    """Object of the synchronous SDK whose methods are coroutines: each call runs in a thread."""

    def __init__(self, original: Any):
        self._original = original

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._original, name)
        if name in ("commands", "files"):
            return Threaded(attribute)
        if not callable(attribute):
            return attribute

        async def call(*arguments, **options):
            return await asyncio.to_thread(attribute, *arguments, **options)

        return call


class Sdk:
    """One of the two SDKs; kills the sandboxes that it created."""

    def __init__(self, name: str):
        self.name = name
        self._created: list[Any] = []

    async def create(self, **options) -> Any:
        options["metadata"] = {**MARK, **options.get("metadata", {})}
        options.setdefault("timeout", 600)
        sandbox = await self._call("create", **options)
        self._created.append(sandbox)
        return sandbox

    async def connect(self, sandbox_id: str) -> Any:
        return await self._call("connect", sandbox_id)

    async def _call(self, function: str, *arguments, **options) -> Any:
        if self.name == "async":
            return await getattr(official.AsyncSandbox, function)(*arguments, **options)
        return Threaded(await asyncio.to_thread(getattr(official.Sandbox, function), *arguments, **options))

    async def kill_all(self) -> None:
        for sandbox in self._created:
            # A test may have killed it: then this has no effect.
            await sandbox.kill()
        self._created.clear()


def output(execution: official.Execution) -> str:
    """Returns the standard output of an execution that must succeed."""
    assert execution.error is None, f"{execution.error.name}: {execution.error.value}\n{execution.error.traceback}"
    return "".join(execution.logs.stdout)


def text(execution: official.Execution) -> str:
    """Returns the text of the main result of an execution that must succeed."""
    output(execution)
    assert execution.text is not None, f"no result: {execution}"
    return execution.text
