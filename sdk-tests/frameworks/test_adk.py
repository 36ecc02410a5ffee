"""Google's Agent Development Kit: its E2B environment, and E2B's plugin with an agent whose model follows a script."""

import pytest
import pytest_asyncio
from e2b_adk import E2BPlugin
from google.adk.agents import Agent
from google.adk.integrations.e2b import E2BEnvironment
from google.adk.models import BaseLlm, LlmResponse
from google.adk.runners import InMemoryRunner
from google.genai import types

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment():
    environment = E2BEnvironment(timeout=300, env_vars={"TOLD": "everywhere"})
    await environment.initialize()
    yield environment
    await environment.close()


async def test_commands_succeed_fail_and_time_out(environment):
    done = await environment.execute("echo $TOLD; echo aside >&2; exit 3")
    assert (done.exit_code, done.stdout, done.stderr, done.timed_out) == (3, "everywhere\n", "aside\n", False)
    assert (await environment.execute("pwd")).stdout.strip() == str(environment.working_dir)
    assert (await environment.execute("sleep 60", timeout=2)).timed_out


async def test_files_are_written_and_read(environment):
    for path, content in (("a folder/text.txt", "täxt\n"), ("/tmp/bytes", bytes(range(256)) * 4096)):
        await environment.write_file(path, content)
        expected = content.encode() if isinstance(content, str) else content
        assert await environment.read_file(path) == expected
    with pytest.raises(FileNotFoundError):
        await environment.read_file("nobody")


async def test_a_killed_sandbox_is_created_again(environment):
    await environment.write_file("before", "text")
    await environment._sandbox.kill()
    assert (await environment.execute("ls before; echo anew")).stdout == "anew\n"


class Script(BaseLlm):
    """Model that calls tools one after the other, stores their results, and finally replies `done`."""

    model: str = "script"
    calls: list[tuple[str, dict]]
    seen: list[dict] = []

    async def generate_content_async(self, llm_request, stream=False):
        parts = llm_request.contents[-1].parts or []
        self.seen.extend(part.function_response.response for part in parts if part.function_response)
        if len(self.seen) < len(self.calls):
            name, arguments = self.calls[len(self.seen)]
            part = types.Part(function_call=types.FunctionCall(name=name, args=arguments))
        else:
            part = types.Part(text="done")
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


async def test_an_agent_works_in_one_sandbox():
    model = Script(
        calls=[
            ("write_file", {"path": "/home/user/word.txt", "content": "hello"}),
            ("run_command", {"command": "cat word.txt; exit 4"}),
            ("read_file", {"path": "/home/user/word.txt"}),
            ("list_files", {"path": "/home/user"}),
            ("start_background_command", {"command": "python3 -m http.server 8000", "port": 8000}),
            ("run_command", {"command": "sleep 60", "timeout": 2}),
        ]
    )
    plugin = E2BPlugin(template="base", timeout=300)
    agent = Agent(name="worker", model=model, tools=plugin.get_tools())
    runner = InMemoryRunner(agent=agent, app_name="journeys", plugins=[plugin])
    session = await runner.session_service.create_session(app_name="journeys", user_id="user")
    begin = types.Content(role="user", parts=[types.Part(text="begin")])
    texts = []
    async for event in runner.run_async(user_id="user", session_id=session.id, new_message=begin):
        texts.extend(part.text for part in (event.content.parts if event.content else []) or [] if part.text)
    await plugin.close()
    assert texts == ["done"]
    written, ran, read, listed, started, late = model.seen
    assert written["success"] and ran["success"] and (ran["exit_code"], ran["stdout"]) == (4, "hello")
    assert read["content"] == "hello"
    assert "word.txt" in [entry["name"] for entry in listed["entries"]]
    assert started["success"] and "8000-" in str(started), started
    assert not late["success"], late
