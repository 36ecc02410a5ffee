"""Journeys with an older SDK, which uses the first generation of create and connect routes, and validates keys itself."""

import asyncio

import e2b
from e2b import AsyncSandbox, CommandExitException, Sandbox, SandboxQuery

from journeys import MARK, eventually

GENERATION = {**MARK, "generation": "older"}


def test_the_older_sdk_is_installed():
    assert e2b.ConnectionConfig().headers["User-Agent"] == "e2b-python-sdk/2.45.1"


def test_commands_files_and_a_watch(new_sandbox):
    sandbox = new_sandbox()
    assert sandbox.commands.run("echo $((6 * 7))").stdout == "42\n"
    try:
        sandbox.commands.run("exit 3")
    except CommandExitException as error:
        assert error.exit_code == 3
    else:
        raise AssertionError("a failed command must raise an error")
    watch = sandbox.files.watch_dir("/home/user")
    sandbox.files.write("older.txt", "text of an older client")
    assert sandbox.files.read("older.txt") == "text of an older client"
    assert eventually(lambda: [event for event in watch.get_new_events() if event.name == "older.txt"], within=30)
    watch.stop()


def test_connecting_listing_and_timeouts(new_sandbox):
    sandbox = new_sandbox(metadata={"generation": "older"})
    sandbox.files.write("kept.txt", "kept")
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("kept.txt") == "kept"
    again.set_timeout(200)
    pages = Sandbox.list(query=SandboxQuery(metadata=GENERATION))
    assert [info.sandbox_id for info in pages.next_items()] == [sandbox.sandbox_id]
    assert sandbox.get_info().sandbox_id == sandbox.sandbox_id
    assert sandbox.is_running()
    assert sandbox.kill() and not sandbox.is_running()
    assert not Sandbox.kill(sandbox.sandbox_id)


def test_the_asynchronous_sdk():
    async def journey():
        sandbox = await AsyncSandbox.create(timeout=120, metadata=MARK)
        try:
            assert (await sandbox.commands.run("echo async")).stdout == "async\n"
        finally:
            assert await sandbox.kill()

    asyncio.run(journey())
