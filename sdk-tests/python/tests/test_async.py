"""Journeys with the asynchronous SDK, many of them concurrently."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from e2b import (
    AsyncSandbox,
    CommandExitException,
    FilesystemEvent,
    FilesystemEventType,
    PtySize,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    SandboxNotFoundException,
    SandboxQuery,
)

from journeys import MARK

SECONDS = 60
UNKNOWN_PID = 999999


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared() -> AsyncIterator[AsyncSandbox]:
    sandbox = await AsyncSandbox.create(timeout=600, metadata=MARK)
    yield sandbox
    await sandbox.kill()


# envd: C10
async def test_lifecycle():
    sandbox = await AsyncSandbox.create(timeout=120, metadata={**MARK, "life": "whole"}, envs={"NAME": "Ada"})
    try:
        info = await sandbox.get_info()
        assert info.sandbox_id == sandbox.sandbox_id and info.metadata["life"] == "whole"
        assert (await sandbox.commands.run("echo $NAME")).stdout == "Ada\n"
        same = await AsyncSandbox.connect(sandbox.sandbox_id)
        await same.files.write("note", "async")
        assert await sandbox.files.read("note") == "async"
        await sandbox.set_timeout(60)
        pages = AsyncSandbox.list(query=SandboxQuery(metadata={**MARK, "life": "whole"}), limit=1)
        assert [item.sandbox_id for item in await pages.next_items()] == [sandbox.sandbox_id]
        assert not pages.has_next
        assert await sandbox.is_running()
    finally:
        assert await sandbox.kill()
    assert not await sandbox.is_running()
    with pytest.raises(SandboxNotFoundException):
        await sandbox.get_info()


async def test_concurrent_sandboxes():
    async def life(number: int) -> str:
        sandbox = await AsyncSandbox.create(timeout=120, metadata=MARK)
        try:
            await sandbox.files.write("number", str(number))
            return (await sandbox.commands.run("cat number")).stdout
        finally:
            await sandbox.kill()

    assert await asyncio.gather(*(life(number) for number in range(5))) == [str(number) for number in range(5)]


# envd: C1, C3
async def test_concurrent_commands(shared):
    results = await asyncio.gather(*(shared.commands.run(f"echo {number}") for number in range(10)))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(10)]
    with pytest.raises(CommandExitException) as caught:
        await shared.commands.run("echo bad >&2; exit 9")
    assert (caught.value.exit_code, caught.value.stderr) == (9, "bad\n")


# envd: C9, C11, C12
async def test_background_input_and_kill(shared):
    printed: asyncio.Queue[str] = asyncio.Queue()
    handle = await shared.commands.run("cat", background=True, stdin=True, on_stdout=printed.put_nowait, timeout=0)
    await handle.send_stdin("hello\n")
    assert await asyncio.wait_for(printed.get(), SECONDS) == "hello\n"
    assert handle.pid in [process.pid for process in await shared.commands.list()]
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "hello\n"
    other = await shared.commands.run("sleep 300", background=True, timeout=0)
    assert await other.kill()
    with pytest.raises(CommandExitException):
        await other.wait()


# envd: C18
async def test_input_as_a_stream(shared):
    printed = asyncio.Queue()
    handle = await shared.commands.run("cat", background=True, stdin=True, on_stdout=printed.put_nowait, timeout=0)
    stream = shared.commands.stream_input(handle.pid)
    # The default is fifty seconds. The SDK reads the value when the stream starts, which has not happened yet.
    stream._keepalive_interval = 0.05
    output = ""
    for number in range(5):
        await stream.send(f"{number}\n")
        # Pause for longer than the interval, so that keepalives are sent in between.
        while not output.endswith(f"{number}\n"):
            output += await asyncio.wait_for(printed.get(), SECONDS)
        await asyncio.sleep(0.2)
    for number in range(5, 200):
        await stream.send(f"{number}\n")
    await stream.close()
    # The end of the stream does not close the command's input.
    await handle.send_stdin("after\n")
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "".join(f"{number}\n" for number in range(200)) + "after\n"
    with pytest.raises(NotFoundException):
        await shared.commands.stream_input(UNKNOWN_PID).close()


async def test_files(shared):
    await asyncio.gather(*(shared.files.write(f"many/{number}", str(number) * 1000) for number in range(10)))
    assert sorted(entry.name for entry in await shared.files.list("many")) == [str(number) for number in range(10)]
    assert await shared.files.read("many/7") == "7" * 1000
    await shared.files.rename("many/7", "many/seven")
    await shared.files.remove("many/8")
    assert not await shared.files.exists("many/8") and await shared.files.exists("many/seven")
    parts = [part async for part in await shared.files.read("many/9", format="stream")]
    assert b"".join(parts) == b"9" * 1000


# envd: W2, W3, W8
async def test_watch_events_are_pushed(shared):
    events: asyncio.Queue = asyncio.Queue()
    await shared.files.make_dir("watched")
    handle = await shared.files.watch_dir("watched", on_event=events.put_nowait, recursive=True, include_entry=True)
    await shared.files.write("watched/deep/file", "x")
    while True:
        event = await asyncio.wait_for(events.get(), SECONDS)
        if (event.type, event.name) == (FilesystemEventType.CREATE, "deep/file"):
            break
    await shared.files.remove("watched/deep/file")
    while event.type != FilesystemEventType.REMOVE:
        event = await asyncio.wait_for(events.get(), SECONDS)
    assert (event.name, event.entry) == ("deep/file", None)
    await handle.stop()


# envd: W1, W3, W4, W5, W8
async def test_options_and_errors_of_a_pushed_watch(shared):
    events, ends = asyncio.Queue(), asyncio.Queue()
    path = (await shared.files.write("told/file", "x")).path

    async def written() -> FilesystemEvent:
        while True:
            event = await asyncio.wait_for(events.get(), SECONDS)
            if event.type == FilesystemEventType.WRITE:
                return event

    for options in ({}, {"include_entry": True, "allow_network_mounts": True}):
        handle = await shared.files.watch_dir("told", on_event=events.put_nowait, on_exit=ends.put_nowait, **options)
        await shared.files.write("told/file", "overwritten")
        event = await written()
        assert event.name == "file"
        if options:
            assert (event.entry.name, event.entry.path, event.entry.type) == ("file", path, FileType.FILE)
        else:
            assert event.entry is None
        await handle.stop()
        while not events.empty():
            events.get_nowait()
    # A stopped watch exits without an error.
    while not ends.empty():
        assert ends.get_nowait() is None
    with pytest.raises(FileNotFoundException):
        await shared.files.watch_dir("missing", on_event=events.put_nowait)
    with pytest.raises(InvalidArgumentException):
        await shared.files.watch_dir("told/file", on_event=events.put_nowait)


# envd: P5
async def test_a_terminal(shared):
    output = bytearray()
    seen = asyncio.Event()

    def on_data(data: bytes) -> None:
        output.extend(data)
        if b"answer=42" in output:
            seen.set()

    terminal = await shared.pty.create(PtySize(rows=24, cols=80), on_data=on_data, timeout=SECONDS)
    await shared.pty.send_stdin(terminal.pid, b"echo answer=$((6*7))\n")
    await asyncio.wait_for(seen.wait(), SECONDS)
    await shared.pty.send_stdin(terminal.pid, b"exit\n")
    assert (await terminal.wait()).exit_code == 0
